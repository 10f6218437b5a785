"""The paper's three figures: what they show, computed, and put into panels.

Source: Raulf et al. 2021, figures 1 to 3. Drawing itself is :mod:`lrpguard.figures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lrpguard.attacks.pgd import quantize
from lrpguard.attribution import BayesianLrp, Lrp, Method, bayesian_relevance
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.paper.experiment import Settings, attack
from lrpguard.evidence import Evidence
from lrpguard.figures import Array, Panel, color_limit
from lrpguard.loading import ImageItem, LoadedModel
from lrpguard.lrp import CMP, ZERO, Composite, Epsilon, Gamma
from lrpguard.lrp.engine import plain_logits
from lrpguard.noise import key_bytes
from lrpguard.restoration import UNKNOWN, Restoration, Whitening, whiten
from lrpguard.smoothing import Smoothing, chunk_size, explain, to_model

LOGIT = "logit"
"""Unit of a relevance map: of the explained logit, a pixel."""

MEDIAN = 0.5

DROPOUT_RATE = 0.1
"""Dropout of B-LRP at every layer's input, where the network has none of its own."""

SAMPLES = 50
"""Networks that B-LRP samples, as many as SmoothLRP has copies in the paper."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A map and its smoothed counterpart.

    Attributes:
        name: What was smoothed.
        plain: Relevance map [H, W].
        smoothed: The same over noisy copies [H, W].
    """

    name: str
    plain: Array
    smoothed: Array


@dataclass(frozen=True, eq=False)
class Reversal:
    """An adversarial image, and what whitening made of it.

    Attributes:
        item: The image as it was loaded.
        clean: Its 8-bit pixels [C, H, W].
        adversarial: The attacked ones [C, H, W].
        whitened: The attacked ones with the changed pixels white [C, H, W].
        before: Evidence of the clean image.
        after: Evidence of the attacked one.
        restoration: What whitening did.
        tried: Successful attacks looked at, this one included.
    """

    item: ImageItem
    clean: Tensor
    adversarial: Tensor
    whitened: Tensor
    before: Evidence
    after: Evidence
    restoration: Restoration
    tried: int

    @property
    def is_right(self) -> bool:
        """Whether the restored label is the true one."""
        return int(self.restoration.label) == self.item.label


def rule_pairs(
    model: nn.Module, image: Tensor, *, smoothing: Smoothing, gamma: float, epsilon: float
) -> list[Pair]:
    """Return what figure 1 compares, for the class predicted for the clean image.

    LRP-0, gamma, epsilon and CMP against their means over the noisy copies; B-LRP's mean against
    that of B-LRP, one sampled network a noisy copy; B-LRP's median against SmoothLRP's.

    Args:
        model: Module in eval mode from [B, C, H, W] in [0, 1] to logits [B, K].
        image: Pixels [C, H, W] in [0, 1].
        smoothing: Copies and noise.
        gamma: Gamma of LRP-gamma, in every layer.
        epsilon: Epsilon of LRP-epsilon, in every layer.
    """
    images = to_model(image[None], model)
    rules = (
        ("LRP-0", ZERO),
        (f"LRP-gamma, {gamma:g}", Composite("gamma", Gamma(gamma))),
        (f"LRP-epsilon, {epsilon:g}", Composite("epsilon", Epsilon(epsilon))),
        ("LRP-CMP", CMP),
    )
    pairs = [_pair(name, model, images, Lrp(rule), smoothing) for name, rule in rules]
    bayesian = _bayesian(model, SAMPLES, smoothing.seed)
    sampled = bayesian_relevance(model, images, method=bayesian, quantiles=(MEDIAN,))
    pairs.append(
        Pair(
            "B-LRP, mean",
            _map(sampled.relevance),
            _smoothed(model, images, replace(bayesian, samples=1), smoothing)
            .relevance_mean[0]
            .cpu()
            .numpy(),
        )
    )
    median = _smoothed(model, images, Lrp(ZERO), smoothing, MEDIAN).relevance_quantiles
    assert median is not None
    pairs.append(
        Pair(
            "median: B-LRP, SmoothLRP-0", _map(sampled.quantiles[:, 0]), median[0, 0].cpu().numpy()
        )
    )
    return pairs


def figure1_panels(
    loaded: LoadedModel, item: ImageItem, pairs: Sequence[Pair]
) -> list[list[Panel | None]]:
    """Return the panels of figure 1: the image, then a column a pair, the plain map above."""
    assert item.image is not None
    (logits,) = plain_logits(loaded.model, to_model(item.image[None], loaded.model))
    label, logit = int(logits.argmax()), float(logits.max())
    return [
        [
            Panel(_pixels(item), title=_explained(loaded, item, label, logit), caption=item.name),
            *(Panel(pair.plain, "signed", title=pair.name, unit=LOGIT) for pair in pairs),
        ],
        [None, *(Panel(pair.smoothed, "signed", unit=LOGIT) for pair in pairs)],
    ]


def figure2_panels(
    loaded: LoadedModel, items: Iterable[ImageItem], *, smoothing: Smoothing, across: int = 2
) -> list[list[Panel | None]]:
    """Explain images, and return the panels of figure 2: image, LRP-CMP, SmoothLRP-CMP.

    Args:
        loaded: The model.
        items: The images.
        smoothing: Copies and noise.
        across: Images in a row.

    Raises:
        ConfigurationError: There is no image.
    """
    triples = [_cmp_triple(loaded, item, smoothing) for item in items]
    if not triples:
        raise ConfigurationError("there is no image to show; give at least one.")
    triples += [[None] * 3] * (-len(triples) % across)
    return [
        [panel for triple in triples[start : start + across] for panel in triple]
        for start in range(0, len(triples), across)
    ]


def find_reversal(
    model: nn.Module, items: Iterable[ImageItem], *, settings: Settings, tries: int
) -> Reversal:
    """Attack image after image until whitening restores the right label of one.

    Args:
        model: Module in eval mode from [B, C, H, W] in [0, 1] to logits [B, K].
        items: Images with their labels.
        settings: Attack, copies and whitening.
        tries: Successful attacks after which to give up.

    Returns:
        The first that is restored to the right label, or the first of all where there is none;
        with the number of successful attacks looked at.

    Raises:
        ConfigurationError: No attack has succeeded, or ``tries`` is below 1.
    """
    if tries < 1:
        raise ConfigurationError(f"tries is {tries}; try at least 1.")
    first, tried = None, 0
    for item in items:
        found = _reversal(model, item, settings, tried + 1)
        if found is None:
            continue
        tried += 1
        first = first or found
        if found.is_right:
            return found
        if tried >= tries:
            break
    if first is None:
        raise ConfigurationError(
            "no attack has turned a right label into a wrong one; give more images, or a larger "
            "eps."
        )
    return replace(first, tried=tried)


def figure3_panels(loaded: LoadedModel, reversal: Reversal) -> list[list[Panel | None]]:
    """Return the panels of figure 3: images above, variance maps on one scale and outcome below."""
    before, after = reversal.before, reversal.after
    variances = [e.relevance_variance[0].cpu().numpy() for e in (before, after)]
    limit = color_limit(*variances)
    maps = [
        Panel(
            values,
            "unsigned",
            title=f"variance of the relevance, {name}",
            caption=f"mean {values.mean():.3g}",
            unit=f"{LOGIT}²",
            limit=limit,
        )
        for name, values in zip(("clean", "adversarial"), variances, strict=True)
    ]
    change = reversal.adversarial - reversal.clean
    largest = float(change.abs().max())
    restored, rounds = int(reversal.restoration.label), int(reversal.restoration.rounds)
    changed = int(reversal.restoration.changed_pixels.sum())
    if restored == UNKNOWN:
        outcome = "the label has not changed"
    else:
        outcome = f"{'right' if reversal.is_right else 'wrong'}: " + _class(
            loaded, restored, float(reversal.restoration.logits[0, restored])
        )
    return [
        [
            Panel(reversal.clean.numpy(), title="clean", caption=_predicted(loaded, before)),
            Panel(
                reversal.adversarial.numpy(), title="adversarial", caption=_predicted(loaded, after)
            ),
            Panel(
                (0.5 + change / (2 * largest)).clamp(0, 1).numpy(),
                title="their difference",
                caption=f"grey: none; at most {255 * largest:.0f}/255",
            ),
        ],
        [
            *maps,
            Panel(
                reversal.whitened.numpy(),
                title=f"{changed} pixels white, round {rounds}",
                caption=outcome,
            ),
        ],
    ]


def _pair(
    name: str, model: nn.Module, images: Tensor, method: Method, smoothing: Smoothing
) -> Pair:
    plain = _map(method.attribute(model, images).relevance)
    smoothed = _smoothed(model, images, method, smoothing).relevance_mean
    return Pair(name, plain, smoothed[0].cpu().numpy())


def _smoothed(
    model: nn.Module, images: Tensor, method: Method, smoothing: Smoothing, *quantiles: float
) -> Evidence:
    return explain(
        model,
        images,
        n=smoothing.n,
        sigma=smoothing.sigma,
        seed=smoothing.seed,
        method=method,
        quantiles=quantiles,
    )


def _map(relevance: Tensor) -> Array:
    """Return the map [H, W] of the relevance of one image [1, C, H, W]."""
    return relevance[0].float().sum(0).cpu().numpy()


def _bayesian(model: nn.Module, samples: int, seed: int) -> BayesianLrp:
    """Return B-LRP by the network's own dropout, or at every layer's input where it has none."""
    drops = nn.modules.dropout._DropoutNd
    if any(isinstance(module, drops) and module.p > 0 for module in model.modules()):
        return BayesianLrp(ZERO, samples, seed=seed)
    return BayesianLrp(ZERO, samples, layers="*", rate=DROPOUT_RATE, seed=seed)


def _cmp_triple(loaded: LoadedModel, item: ImageItem, smoothing: Smoothing) -> list[Panel | None]:
    assert item.image is not None
    images = to_model(item.image[None], loaded.model)
    plain = _map(Lrp(CMP).attribute(loaded.model, images).relevance)
    evidence = _smoothed(loaded.model, images, Lrp(CMP), smoothing)
    label, logit = int(evidence.label), float(evidence.explained_logit)
    return [
        Panel(_pixels(item), title=_explained(loaded, item, label, logit)),
        Panel(plain, "signed", title="LRP-CMP", unit=LOGIT),
        Panel(
            evidence.relevance_mean[0].cpu().numpy(), "signed", title="SmoothLRP-CMP", unit=LOGIT
        ),
    ]


def _reversal(
    model: nn.Module, item: ImageItem, settings: Settings, number: int
) -> Reversal | None:
    """Attack one image and whiten the result; None where the attack does not succeed."""
    assert item.image is not None
    assert item.label is not None
    clean = to_model(quantize(item.image)[None], model)
    with torch.no_grad():
        if int(model(clean).argmax(1)) != item.label:
            return None
        attacked = attack(model, clean[0], item.label, settings=settings)[None]
        if int(model(attacked).argmax(1)) == item.label:
            return None
    smoothing = settings.smoothing
    before, after = (
        explain(model, images, n=smoothing.n, sigma=smoothing.sigma, seed=smoothing.seed)
        for images in (clean, attacked)
    )
    restoration = whiten(
        model,
        attacked,
        after,
        whitening=Whitening(pixels=settings.pixels, max_rounds=settings.max_rounds),
        smoothing=smoothing,
        key=key_bytes(smoothing.seed),
        chunk=chunk_size(model, clean, composite=smoothing.composite, memory_budget=None),
    )
    whitened = attacked.masked_fill(restoration.changed_pixels[:, None], 1.0)
    return Reversal(
        item=item,
        clean=clean[0].cpu(),
        adversarial=attacked[0].cpu(),
        whitened=whitened[0].cpu(),
        before=before,
        after=after,
        restoration=restoration,
        tried=number,
    )


def _pixels(item: ImageItem) -> Array:
    assert item.image is not None
    return item.image.numpy()


def _explained(loaded: LoadedModel, item: ImageItem, label: int, logit: float) -> str:
    wrong = "" if item.label in (None, label) else " (wrong)"
    return _class(loaded, label, logit) + wrong


def _predicted(loaded: LoadedModel, evidence: Evidence) -> str:
    return _class(loaded, int(evidence.label), float(evidence.explained_logit))


def _class(loaded: LoadedModel, label: int, logit: float) -> str:
    names = loaded.class_names
    name = names[label] if names is not None else f"class {label}"
    return f"{name}\nlogit {logit:.1f}"
