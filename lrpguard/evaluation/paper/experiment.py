"""The experiment of the paper: attack, explain, threshold, detect, restore.

Source: Raulf et al. 2021, section 3.2, steps (i) to (iv). Where the paper leaves a choice open
the docstrings say which is taken: :class:`Row` for what counts as success,
:func:`attack` for the attack, :func:`choose_threshold` for the threshold.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lrpguard.attacks import pgd, quantize
from lrpguard.attacks.pgd import STEP_FACTOR
from lrpguard.errors import ConfigurationError, NonFiniteScoreError
from lrpguard.evaluation.labelled import Labelled
from lrpguard.evaluation.paper.record import Outcome, Row, Split, choose_threshold
from lrpguard.evidence import Evidence
from lrpguard.fingerprint import model_fingerprint, model_precision
from lrpguard.guard import Guard
from lrpguard.loading import ImageItem
from lrpguard.noise import image_digest, key_bytes
from lrpguard.restoration import Whitening, whiten
from lrpguard.rowlog import RowLog
from lrpguard.scores import label_disagreement, relevance_variance
from lrpguard.smoothing import PAPER_N, PAPER_SIGMA, Smoothing, chunk_size, to_model
from lrpguard.version import __version__

PAPER_EPS = 5 / 255
PAPER_STEPS = 10
THRESHOLD_IMAGES = 20
"""Images whose clean and adversarial versions place the paper's threshold."""


@dataclass(frozen=True)
class Settings:
    """Settings of the experiment; the defaults are the paper's.

    Args:
        eps: Strength of the attack on the [0, 1] pixel scale.
        steps: Iterations of the attack.
        stop_early: Whether the attack ends at the first step that changes the label, as
            Foolbox 1 and 2 do; otherwise it takes all its steps.
        n: Noisy copies.
        sigma: Standard deviation of their noise.
        pixels: Pixels whitened in a round; None takes 2 %.
        max_rounds: Rounds of whitening after which a label is given up; the paper names none.
        alpha: False-positive rate of the conformal threshold, which is not the paper's.
        seed: Seed of the attack's starts and of the copies' noise.
    """

    eps: float = PAPER_EPS
    steps: int = PAPER_STEPS
    stop_early: bool = False
    n: int = PAPER_N
    sigma: float = PAPER_SIGMA
    pixels: int | None = None
    max_rounds: int = 10
    alpha: float = 0.05
    seed: int = 0

    @property
    def smoothing(self) -> Smoothing:
        """How copies are made: uniform LRP-epsilon with 1e-9."""
        return Smoothing(n=self.n, sigma=self.sigma, seed=self.seed)


@dataclass(frozen=True)
class Splits:
    """Disjoint parts of the data.

    Attributes:
        threshold: Images that place the paper's threshold, with their adversarial versions.
        conformal: Clean images that place the conformal threshold.
        test: Images that are attacked, detected and restored.
    """

    threshold: Labelled
    conformal: Labelled
    test: Labelled


def run_paper(
    model: nn.Module,
    splits: Splits,
    *,
    settings: Settings,
    rows: RowLog,
    progress: bool = False,
) -> Outcome:
    """Run the paper's experiment, or what of it the log does not hold yet.

    Clean and adversarial images alike are rounded to 8 bits before anything else.

    Args:
        model: Module in eval mode from [B, C, H, W] in [0, 1] to logits [B, K].
        splits: Disjoint parts of the data.
        settings: Settings of the experiment.
        rows: Log opened with :func:`run_header`.
        progress: Whether to show progress bars on standard error.

    Raises:
        ConfigurationError: The splits share an image.
        LoadingError: An image cannot be read.
        NonFiniteScoreError: A score is NaN or infinite.
    """
    _check_disjoint(splits)
    lab = _Lab(model, settings)
    done: dict[Split, tuple[Row, ...]] = {}

    def run(split: Split, part: Labelled, threshold: float | None) -> None:
        bar = tqdm(part, split, len(part), disable=not progress, unit="image")
        done[split] = tuple(_row(lab, split, item, threshold, rows) for item in bar)

    run("threshold", splits.threshold, None)
    threshold = choose_threshold(
        [row.clean_score for row in done["threshold"]],
        [row.adversarial_score for row in done["threshold"] if row.adversarial_score is not None],
    )
    run("conformal", splits.conformal, None)
    run("test", splits.test, threshold.value)
    return Outcome(threshold, done)


def run_header(model: nn.Module, splits: Splits, settings: Settings) -> dict[str, Any]:
    """Return what the rows of a run depend on, for :class:`RowLog`.

    Of the splits that is the first alone, whose threshold says which images are restored.
    """
    part = splits.threshold
    names = [(part.source[i].name, part.labels[i]) for i in part.indices]
    return {
        "threshold_images": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "experiment": "paper",
        "version": __version__,
        "fingerprint": model_fingerprint(model),
        "precision": model_precision(model),
        "settings": asdict(settings),
    }


def attack(model: nn.Module, image: Tensor, label: int, *, settings: Settings) -> Tensor:
    """Attack one image by PGD, and round the result to 8 bits.

    The step is ``2.5 * eps / steps``, the start random in the ball, from a seed that follows
    from the image. With ``stop_early`` the result is the first iterate whose rounded image is
    misclassified, the last one where none is.

    Args:
        model: Module in eval mode.
        image: Clean image [C, H, W], k/255 in [0, 1], on the model's device.
        label: Its true class.
        settings: Strength, steps, and whether to stop early.

    Returns:
        Adversarial image [C, H, W], within eps of the clean one.
    """
    seed = int.from_bytes(image_digest(image, key_bytes(settings.seed))[:4], "little")
    labels = torch.tensor([label], device=image.device)
    found = image[None]
    for steps in range(1 if settings.stop_early else settings.steps, settings.steps + 1):
        found = quantize(
            pgd(
                model,
                image[None],
                labels,
                eps=settings.eps,
                steps=steps,
                step_size=STEP_FACTOR * settings.eps / settings.steps,
                seed=seed,
            )
        )
        if settings.stop_early and _label(model, found) != label:
            break
    return found[0]


class _Lab:
    """The model and the tools that all images share."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.guard = Guard(model, smoothing=settings.smoothing, restoration=None)
        self.key = key_bytes(settings.seed)
        self._chunk = 0

    def chunk(self, images: Tensor) -> int:
        """Return how many copies go through the model at a time; measured once."""
        if not self._chunk:
            self._chunk = chunk_size(
                self.model, images, composite=self.settings.smoothing.composite, memory_budget=None
            )
        return self._chunk

    def restore(
        self, images: Tensor, evidence: Evidence, ranking: Literal["variance", "random"]
    ) -> tuple[int, int]:
        """Whiten one image [1, C, H, W]; return its new label, -1 for none, and the rounds."""
        restoration = whiten(
            self.model,
            images,
            evidence,
            whitening=Whitening(
                pixels=self.settings.pixels,
                max_rounds=self.settings.max_rounds,
                ranking=ranking,
            ),
            smoothing=self.settings.smoothing,
            key=self.key,
            chunk=self.chunk(images),
        )
        return int(restoration.label), int(restoration.rounds)


def _row(lab: _Lab, split: Split, item: ImageItem, threshold: float | None, log: RowLog) -> Row:
    """Return the row of an image from the log, or make it and enter it there."""
    assert item.image is not None
    assert item.label is not None
    image = to_model(quantize(item.image)[None], lab.model)[0]
    digest = image_digest(image, b"").hex()
    key = f"{split}/{digest}"
    if key not in log.rows:
        started = time.perf_counter()
        row = _measure(lab, split, image, item.label, threshold)
        row |= {"image": digest, "index": item.index, "name": item.name, "label": item.label}
        log.add(key, row | {"seconds": round(time.perf_counter() - started, 3)})
    return Row(**log.rows[key])


def _measure(
    lab: _Lab, split: Split, image: Tensor, label: int, threshold: float | None
) -> dict[str, Any]:
    """Take the steps of the experiment that an image of this split goes through."""
    row = _evidence_fields(lab.guard.evidence(image[None]), "clean")
    if split == "conformal":
        return row
    found = attack(lab.model, image, label, settings=lab.settings)[None]
    row["adversarial_label"] = _label(lab.model, found)
    if split == "test" and row["adversarial_label"] == label:
        return row  # the attack failed; there is nothing to detect
    evidence = lab.guard.evidence(found)
    row |= _evidence_fields(evidence, "adversarial")
    successful = row["clean_label"] == label != row["adversarial_label"]
    if threshold is None or not successful or row["adversarial_score"] <= threshold:
        return row
    row["restored_label"], row["restored_rounds"] = lab.restore(found, evidence, "variance")
    row["control_label"], row["control_rounds"] = lab.restore(found, evidence, "random")
    return row


def _evidence_fields(evidence: Evidence, kind: str) -> dict[str, Any]:
    score = float(relevance_variance(evidence))
    if score - score != 0:
        raise NonFiniteScoreError(
            f"the score of a {kind} image is {score}: the model overflows on its noisy copies. "
            "Run it in float32."
        )
    return {
        f"{kind}_label": int(evidence.label),
        f"{kind}_score": score,
        f"{kind}_kept": 1 - float(label_disagreement(evidence)),
    }


def _label(model: nn.Module, images: Tensor) -> int:
    with torch.no_grad():
        return int(model(images).argmax(1))


def _check_disjoint(splits: Splits) -> None:
    """Refuse splits that share an image, by its 8-bit pixels."""
    owner: dict[str, str] = {}
    for field in fields(splits):
        part: Labelled = getattr(splits, field.name)
        for item in part:
            assert item.image is not None
            digest = image_digest(quantize(item.image), b"").hex()
            if owner.setdefault(digest, field.name) != field.name:
                raise ConfigurationError(
                    f"{item.name} is in the {field.name} and the {owner[digest]} split; what "
                    "places a threshold must not be tested by it. Remove the duplicate."
                )
