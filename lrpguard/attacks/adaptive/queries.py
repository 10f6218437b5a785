"""Attacks that only ask: what the guard answers is all they have.

An oracle stands for the service. It judges images as the guard does, and the attack may read of
its answer what its kind allows: the scores, or the label and the flag alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrpguard.attacks.adaptive.descent import Effort
from lrpguard.attacks.margins import margin
from lrpguard.attacks.pgd import check_labels, quantize
from lrpguard.errors import ConfigurationError, MissingDependencyError
from lrpguard.inputs import check_images
from lrpguard.verdict import Verdict

Oracle = Callable[[Tensor], Verdict]
"""A guard, or what stands between the attacker and one."""

FIRST_SHARE = 0.3
LAST_SHARE = 0.01
"""Share of the image that a square covers, at the first and at the last query."""


@dataclass(frozen=True)
class Queried:
    """What an attack by queries came to.

    Attributes:
        images: Images of whole 8-bit levels [B, C, H, W].
        queries: Queries that each image took [B].
    """

    images: Tensor
    queries: Tensor


def passes(verdict: Verdict, labels: Tensor) -> Tensor:
    """Return which requests fool the model without a flag [B]."""
    return (verdict.label != labels) & ~verdict.flagged


def square_on_guard(oracle: Oracle, images: Tensor, labels: Tensor, effort: Effort) -> Queried:
    """Attack by random squares, with the anomaly score in the loss.

    The attacker reads logits and anomaly score, which a service that answers with its p-value
    gives away in part. A square of the present image is set to the clean one, or to that plus or
    minus eps, and kept where the sum of the model's missing lead and the anomaly's root falls. An
    image that fools the model without a flag is done.

    Args:
        oracle: Who judges.
        images: Clean images in [0, 1], [B, C, H, W].
        labels: Classes they are led away from, integers [B].
        effort: ``eps``, ``seed`` and ``gray`` count; ``steps`` are the most queries of an image.

    Returns:
        The images, and how many queries each took.

    Raises:
        InputError: The images are not what lrpguard takes.

    Source:
        Andriushchenko et al. 2020, "Square Attack". Ours begins at the image itself in place of
        stripes, and can go back to it, since a detector sees what is changed in vain.
    """
    clean = check_images(images).clone()
    classes = check_labels(labels, clean)
    generator = np.random.default_rng(effort.seed)
    kept, queries = quantize(clean), torch.ones(len(clean), dtype=torch.int64)
    verdict = oracle(kept)
    least, done = _loss(verdict, classes), passes(verdict, classes)
    for step in range(effort.steps - 1):
        rows = (~done).nonzero().flatten()
        if len(rows) == 0:
            break
        share = FIRST_SHARE * (LAST_SHARE / FIRST_SHARE) ** (step / max(effort.steps - 1, 1))
        tried = torch.stack(
            [_with_square(kept[row], clean[row], share, effort, generator) for row in rows.tolist()]
        )
        verdict = oracle(tried)
        queries[rows.cpu()] += 1
        losses = _loss(verdict, classes[rows])
        better = (losses < least[rows]) | passes(verdict, classes[rows])
        kept[rows[better]], least[rows[better]] = tried[better], losses[better]
        done[rows] |= passes(verdict, classes[rows])
    return Queried(kept, queries)


def hop_skip_jump(
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    starts: Tensor,
    *,
    iterations: int = 10,
    evaluations: int = 50,
    seed: int = 0,
) -> Queried:
    """Seek a near image that fools the model without a flag, from label and flag alone.

    Args:
        oracle: Who judges.
        images: Clean images in [0, 1], [B, C, H, W].
        labels: Their classes, integers [B].
        starts: For each image, one that passes as another class, such as a clean image of it
            [B, C, H, W].
        iterations: Steps along the boundary, >= 1.
        evaluations: Queries for one estimate of the boundary's direction, >= 1.
        seed: Seed of its random directions. NumPy's global state is put back.

    Returns:
        The images, in 8 bits as the service sees them, and how many queries each took.

    Raises:
        MissingDependencyError: The adversarial-robustness-toolbox is not installed.
        ConfigurationError: A count is below 1.
        InputError: The images are not what lrpguard takes.

    Source:
        Chen, Jordan, Wainwright 2020, "HopSkipJumpAttack", by the Adversarial Robustness Toolbox,
        in the L-infinity norm.
    """
    if iterations < 1 or evaluations < 1:
        raise ConfigurationError(
            f"iterations is {iterations} and evaluations {evaluations}; expected at least 1."
        )
    try:
        evasion: Any = importlib.import_module("art.attacks.evasion")
        estimators: Any = importlib.import_module("art.estimators.classification")
    except ImportError as error:
        raise MissingDependencyError(
            "HopSkipJump comes with the adversarial-robustness-toolbox, which is not installed. "
            "Install it with: pip install 'lrpguard[baselines]'"
        ) from error
    clean = check_images(images)
    classes = check_labels(labels, clean)
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        found = [
            _hop(oracle, *each, iterations, evaluations, evasion, estimators)
            for each in zip(clean, classes, check_images(starts), strict=True)
        ]
    finally:
        np.random.set_state(state)
    return Queried(
        torch.stack([image for image, _ in found]), torch.tensor([asked for _, asked in found])
    )


def passes_once(oracles: Sequence[Oracle], tries: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return which images pass as another class in at least one of several tries [B].

    Args:
        oracles: Who judges each try.
        tries: What is sent in each try [B, C, H, W].
        labels: True classes [B].
    """
    answers = zip(oracles, tries, strict=True)
    found = [passes(oracle(images), labels) for oracle, images in answers]
    return torch.stack(found).any(0)


def nudged(images: Tensor, number: int) -> Tensor:
    """Return images of which one value is one level off, another one for each number; 0 is none.

    To noise keyed by content this is a new image.
    """
    changed = quantize(images)
    if number:
        # A stride that is prime to any even count, so that no place comes twice.
        place = (number * 7919) % changed[0].numel()
        flat = changed.flatten(1)
        flat[:, place] += torch.where(flat[:, place] < 0.5, 1 / 255, -1 / 255)
    return quantize(changed)


def _loss(verdict: Verdict, labels: Tensor) -> Tensor:
    """Return the missing lead and the anomaly's root together [B]."""
    lead = margin(verdict.logits.double(), labels)
    return lead.clamp(min=0) + verdict.score.double().clamp(min=0).sqrt()


def _with_square(
    image: Tensor, clean: Tensor, share: float, effort: Effort, generator: np.random.Generator
) -> Tensor:
    channels, height, width = image.shape
    side = max(1, round((share * height * width) ** 0.5))
    tall, wide = min(side, height), min(side, width)
    top = int(generator.integers(height - tall + 1))
    left = int(generator.integers(width - wide + 1))
    signs = generator.choice([-1.0, 0.0, 1.0], size=1 if effort.gray else channels)
    change = torch.as_tensor(signs, dtype=image.dtype, device=image.device) * effort.eps
    place = (slice(None), slice(top, top + tall), slice(left, left + wide))
    tried = image.clone()
    tried[place] = (clean[place] + change.view(-1, 1, 1)).clamp(0, 1)
    return quantize(tried)


def _hop(
    oracle: Oracle,
    image: Tensor,
    label: Tensor,
    start: Tensor,
    iterations: int,
    evaluations: int,
    evasion: Any,
    estimators: Any,
) -> tuple[Tensor, int]:
    """Run ART's attack on one image; return the result in 8 bits, and the queries it took."""
    asked = 0

    def predict(batch: Any) -> Any:
        nonlocal asked
        requests = quantize(torch.as_tensor(np.asarray(batch), dtype=image.dtype).to(image.device))
        asked += len(requests)
        through = passes(oracle(requests), label.expand(len(requests)))
        # Two classes: right or refused, and wrong unnoticed, which is what is sought.
        return np.eye(2)[through.long().cpu().numpy()]

    network = estimators.BlackBoxClassifierNeuralNetwork(
        predict, tuple(image.shape), 2, clip_values=(0.0, 1.0)
    )
    attack = evasion.HopSkipJump(
        network,
        norm=np.inf,
        max_iter=iterations,
        max_eval=evaluations,
        init_eval=min(evaluations, 20),
        init_size=1,
        verbose=False,
    )
    found = attack.generate(
        image[None].cpu().numpy(), y=np.array([0]), x_adv_init=start[None].cpu().numpy()
    )
    return quantize(torch.as_tensor(found[0]).to(image)), asked
