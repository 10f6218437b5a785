"""Images and maps of the best and worst cases of an evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrpguard.attacks import choose
from lrpguard.errors import LoadingError
from lrpguard.evaluation.adversarial import attacked_set
from lrpguard.evaluation.protocol import ImageSet
from lrpguard.evidence import Evidence
from lrpguard.fingerprint import model_fingerprint
from lrpguard.loading import ImageSource, LoadedModel
from lrpguard.report.cases import Case, chosen_cases
from lrpguard.report.pictures import Panels, image_panel, signed_panel, unsigned_panel
from lrpguard.report.runs import Judged
from lrpguard.smoothing import explain, to_model


def case_pictures(
    card: Mapping[str, Any],
    judged: Judged,
    loaded: LoadedModel,
    source: ImageSource,
    *,
    cache: Path,
    step: Callable[[str], None],
) -> dict[Case, Panels]:
    """Return images and maps of the cases that a report shows.

    Attacked images come from the cache of the evaluation; what is not there is made anew.

    Args:
        card: Card of the evaluation.
        judged: Its rows.
        loaded: Its model.
        source: Its images.
        cache: Folder of attacked images.
        step: Told what is being done.

    Raises:
        LoadingError: Model or images are not those of the evaluation.
        LrpGuardError: The model cannot be explained, or an attack failed.
    """
    if model_fingerprint(loaded.model) != card["fingerprint"]:
        raise LoadingError(
            "--model is not the model of the evaluation: its fingerprint differs. Give the same "
            "model and weights, with the same --mean and --std."
        )
    test = _test_images(card, judged, source)
    cases = [
        case
        for found in chosen_cases(judged, alpha=float(card["guard"]["alpha"])).values()
        for case in found
    ]
    shown: dict[Case, Panels] = {}
    for name in dict.fromkeys(case.attack for case in cases):
        own = [case for case in cases if case.attack == name]
        clean = test.select([case.place for case in own]).pixels()
        attacked = None
        if name is not None:
            step(f"pictures of {name}")
            attacked = _attacked(card, judged, test, loaded, own, cache=cache)
        explained = _explained(card, loaded, clean if attacked is None else attacked)
        for row, case in enumerate(own):
            adversarial = None if attacked is None else attacked[row]
            shown[case] = _panels(clean[row], adversarial, explained, row)
    return shown


def _test_images(card: Mapping[str, Any], judged: Judged, source: ImageSource) -> ImageSet:
    """Read the test images again.

    Raises:
        LoadingError: They are others.
    """
    items = [source[index] for index in judged.indices if index < len(source)]
    images = [item.image for item in items if item.image is not None]
    labels = torch.from_numpy(judged.clean.labels)
    if len(images) == len(labels) and len({image.shape for image in images}) == 1:
        found = ImageSet.of(torch.stack(images), labels, judged.indices)
        if found.digest == card["splits"]["test"]["digest"]:
            return found
    raise LoadingError(
        "--data holds other images than the evaluation judged: their digests differ. Give the "
        "same data, with the same --image-size."
    )


def _attacked(
    card: Mapping[str, Any],
    judged: Judged,
    test: ImageSet,
    loaded: LoadedModel,
    cases: list[Case],
    *,
    cache: Path,
) -> Tensor:
    """Return the attacked images of some cases of one attack, [B, C, H, W] in [0, 1]."""
    name = cases[0].attack
    assert name is not None  # clean cases are not asked for
    right = judged.clean.correct.nonzero()[0].tolist()
    (attack,) = choose((name,))
    made = attacked_set(
        attack,
        loaded.model,
        test.select(right),
        seed=int(card["seed"]),
        cache=cache,
        clock=time.perf_counter,
    )
    rows = [right.index(case.place) for case in cases]
    return made.images[rows].float().div(255)


def _explained(card: Mapping[str, Any], loaded: LoadedModel, images: Tensor) -> Evidence:
    guard = card["guard"]
    return explain(
        loaded.model, to_model(images, loaded.model), n=int(guard["n"]), sigma=float(guard["sigma"])
    )


def _panels(clean: Tensor, attacked: Tensor | None, explained: Evidence, row: int) -> Panels:
    panels = [image_panel(clean, "clean")]
    if attacked is not None:
        change = attacked - clean
        largest = float(change.abs().max())
        scaled = 0.5 + change / (2 * largest) if largest > 0 else torch.full_like(change, 0.5)
        panels += [
            image_panel(attacked, "attacked"),
            image_panel(scaled, f"the change, at most {255 * largest:.0f}/255; grey is none"),
        ]
    mean, variance = explained.relevance_mean[row], explained.relevance_variance[row]
    panels += [
        signed_panel(mean.float().cpu(), "relevance: red for the class, blue against"),
        unsigned_panel(variance.float().cpu(), "its variance under noise: bright varies most"),
    ]
    return Panels(tuple(panels))
