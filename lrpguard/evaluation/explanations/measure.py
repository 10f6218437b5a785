"""Every rule, plain and smoothed, on real images: one row an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lrpguard.attribution import Lrp, Method
from lrpguard.errors import ConfigurationError
from lrpguard.evaluation.explanations.imputing import impute
from lrpguard.evaluation.explanations.metrics import (
    FRACTIONS,
    conservation_gap,
    deletion_curves,
    gini_index,
    max_sensitivity,
    mean_colour,
    randomised,
    rank_correlation,
    relevance_gain,
)
from lrpguard.fingerprint import model_fingerprint
from lrpguard.lrp import COMPOSITES
from lrpguard.lrp.engine import plain_logits
from lrpguard.lrp.weights import WeightCache
from lrpguard.noise import gaussian_copies, image_digest, key_bytes
from lrpguard.version import __version__

PLAIN = "plain"
"""Name of the map without smoothing."""

Maps = dict[str, Tensor]
Row = dict[str, dict[str, dict[str, float]]]
"""Values of one image: of each rule, of each map of it, of each metric."""


@dataclass(frozen=True)
class Smooth:
    """One way to smooth.

    Attributes:
        n: Noisy copies, >= 1.
        sigma: Standard deviation of the noise on the [0, 1] pixel scale.
    """

    n: int
    sigma: float

    @property
    def name(self) -> str:
        """What rows and tables call it."""
        return f"n = {self.n}, sigma = {self.sigma:g}"


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        rules: Names of presets, of ``lrpguard.lrp.COMPOSITES``.
        grid: Ways to smooth each.
        images: Images measured.
        probed: How many of them, the first, have their sensitivity and randomisation measured,
            which take many more passes.
        changes: Changed images K behind a sensitivity.
        radius: Largest change of a pixel in those, on the [0, 1] scale.
        fractions: Shares of the pixels that pixel-flipping removes.
        seed: Seed of the images' draw, of the noise, of the changes and of the random weights.

    Raises:
        ConfigurationError: A rule is not known, or a count is out of its range.
    """

    rules: tuple[str, ...]
    grid: tuple[Smooth, ...]
    images: int
    probed: int
    changes: int = 3
    radius: float = 0.02
    fractions: tuple[float, ...] = FRACTIONS
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rules) - set(COMPOSITES))
        if unknown or not self.rules:
            raise ConfigurationError(
                f"no preset is named {', '.join(unknown) or '(none given)'}; there are "
                f"{sorted(COMPOSITES)}."
            )
        if not 0 <= self.probed <= self.images or self.images < 1:
            raise ConfigurationError(
                f"{self.probed} of {self.images} images are to be probed; expected 0 <= probed <= "
                "images, and at least one image."
            )
        if self.changes < 1 or any(way.n < 1 or way.sigma <= 0 for way in self.grid):
            raise ConfigurationError(
                f"changes is {self.changes} and the grid {list(self.grid)}; each needs at least 1 "
                "change or copy, and a sigma above 0."
            )

    @property
    def configurations(self) -> tuple[str, ...]:
        """Names of the maps of each rule."""
        return (PLAIN, *(way.name for way in self.grid))


def run_header(model: nn.Module, plan: Plan) -> dict[str, Any]:
    """Return what the rows of a run depend on, for :class:`lrpguard.rowlog.RowLog`."""
    about = asdict(replace(plan, images=1, probed=0))
    about = {key: value for key, value in about.items() if key not in ("images", "probed")}
    grid = [[way.n, way.sigma] for way in plan.grid]
    return {
        "experiment": "explanations",
        "version": __version__,
        "fingerprint": model_fingerprint(model),
        **about,
        "grid": grid,
        "rules": list(plan.rules),
        "fractions": list(plan.fractions),
    }


def measure(model: nn.Module, images: Tensor, *, plan: Plan, probe: bool) -> list[Row]:
    """Measure all rules of the plan on a batch, for the classes predicted.

    Args:
        model: Module in eval mode from [B, C, H, W] in [0, 1] to logits [B, K].
        images: Pixels in [0, 1], [B, C, H, W].
        plan: What is measured.
        probe: Whether sensitivity and randomisation are measured, too.

    Returns:
        The values of each image.
    """
    logits = plain_logits(model, images)
    label = logits.argmax(1)
    logit = logits.gather(1, label[:, None]).squeeze(1)
    changed = [_changed(images, plan, k) for k in range(plan.changes if probe else 0)]
    shuffled = randomised(model, seed=plan.seed) if probe else None
    imputing = partial(impute, key=key_bytes(plan.seed))
    rows: list[Row] = [{} for _ in images]
    for rule in plan.rules:

        def explained(network: nn.Module, pixels: Tensor, rule: str = rule) -> Maps:
            method = Lrp(COMPOSITES[rule], WeightCache())
            return explained_maps(network, pixels, label, method, plan.grid, seed=plan.seed)

        maps = explained(model, images)
        moved = [explained(model, pixels) for pixels in changed]
        other = explained(shuffled, images) if shuffled is not None else None
        for name, found in maps.items():
            flipped, imputed = (
                deletion_curves(model, images, found, label, fractions=plan.fractions, fill=fill)
                for fill in (mean_colour, imputing)
            )
            values = {
                "gain": relevance_gain(*flipped),
                "road": relevance_gain(*imputed),
                "gap": conservation_gap(found, logit),
                "gini": gini_index(found),
            }
            if moved:
                values["sensitivity"] = max_sensitivity(
                    found, torch.stack([maps_[name] for maps_ in moved])
                )
            if other is not None:
                values["randomisation"] = rank_correlation(found, other[name])
            for at, row in enumerate(rows):
                known = {k: float(v[at]) for k, v in values.items() if bool(v[at].isfinite())}
                row.setdefault(rule, {})[name] = known
    return rows


def explained_maps(
    model: nn.Module,
    images: Tensor,
    label: Tensor,
    method: Method,
    grid: Sequence[Smooth],
    *,
    seed: int,
) -> Maps:
    """Explain a batch plainly, and smoothed in several ways.

    The smoothed maps are those of :func:`lrpguard.explain` up to rounding: fewer copies are the
    first of many.

    Args:
        model: Module in eval mode.
        images: Pixels in [0, 1], [B, C, H, W].
        label: Explained classes [B].
        method: How each copy is explained.
        grid: Ways to smooth.
        seed: Public seed of the noise.

    Returns:
        Maps [B, H, W] by name.
    """
    found: Maps = {PLAIN: method.attribute(model, images, label).relevance.float().sum(1)}
    digests = [image_digest(image, key_bytes(seed)) for image in images]
    for sigma in dict.fromkeys(way.sigma for way in grid):
        counts = {way.n: way.name for way in grid if way.sigma == sigma}
        total = torch.zeros_like(found[PLAIN], dtype=torch.float64)
        for k in range(max(counts)):
            noise = _noise(digests, k, images)
            copies = (images.float() + sigma * noise).to(images.dtype)
            total += method.attribute(model, copies, label).relevance.double().sum(1)
            if k + 1 in counts:
                found[counts[k + 1]] = (total / (k + 1)).float()
    return {name: found[name] for name in (PLAIN, *(way.name for way in grid))}


def _changed(images: Tensor, plan: Plan, k: int) -> Tensor:
    """Return the images with uniform changes of at most the radius, clipped to [0, 1]."""
    digests = [image_digest(image, b"change" + key_bytes(plan.seed)) for image in images]
    uniform = 2 * torch.special.ndtr(_noise(digests, k, images)) - 1
    changed: Tensor = (images + plan.radius * uniform.to(images.dtype)).clamp(0, 1)
    return changed


def _noise(digests: Sequence[bytes], k: int, images: Tensor) -> Tensor:
    """Return copy k's standard normal noise of each image [B, C, H, W]."""
    noise = [gaussian_copies(digest, k, 1, images.shape[1:]) for digest in digests]
    return torch.cat(noise).to(images.device)


def is_complete(row: Mapping[str, Any], plan: Plan, *, probe: bool) -> bool:
    """Say whether a stored row has all that the plan asks of an image."""
    first = row.get(plan.rules[0], {}).get(PLAIN, {})
    return "road" in first and (not probe or "sensitivity" in first)
