"""The search itself: signed steps with momentum in an L-infinity ball, in three manners.

``joint`` follows one weighted sum of both losses; ``selective`` the model's until the model is
won over, and the guard's afterwards; ``orthogonal`` does the same with that part of the one
gradient that does not touch the other. Source of the last two: Bryniarski, Hingun, Pachuca, Wang,
Carlini 2021, "Evading adversarial example detection defenses with orthogonal projected gradient
descent".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from lrpguard.attacks.margins import rounded
from lrpguard.attacks.pgd import quantize
from lrpguard.errors import ConfigurationError

FIRST_STEP = 0.25
LAST_STEP = 0.02
"""Steps at the beginning and at the end, in units of eps; geometric in between."""

MOMENTUM = 0.75
"""Weight of the past gradients: it evens out the noise of few copies (Dong et al. 2018)."""

CHUNK_VALUES = 2**19
"""Values of all that is looked at of the images attacked together: 170 of 3 x 32 x 32."""

Manner = Literal["joint", "selective", "orthogonal"]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How far and how long an attack may go.

    Args:
        eps: Largest change of a pixel, in [0, 1].
        steps: Gradient steps, >= 0; without any the result is the start alone.
        copies: Noisy copies at each step, >= 1; all of the guard's where its key is known.
        seed: Seed of start and noise.
        gray: Change all channels of a pixel alike, which the noise floors of the colours of an
            image of several channels cannot see.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    eps: float
    steps: int
    copies: int = 2
    seed: int = 0
    gray: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise ConfigurationError(
                f"eps is {self.eps}; expected a change of pixels in [0, 1], e.g. 8/255."
            )
        if self.steps < 0 or self.copies < 1:
            raise ConfigurationError(
                f"steps is {self.steps} and copies is {self.copies}; expected steps >= 0 and "
                "copies >= 1."
            )


@dataclass(frozen=True)
class Sight:
    """What an attack sees of its images at one step.

    Attributes:
        model: Loss of what is wanted of the model, >= 0, with a gradient [B].
        guard: Loss of what is wanted of the guard, with a gradient [B].
        won: Whether the model does what is wanted [B].
    """

    model: Tensor
    guard: Tensor
    won: Tensor


Objective = Callable[[Tensor, Tensor], Sight]
"""From images of whole 8-bit levels [R, C, H, W], and which of the chunk's they are [R], to what
the attack sees."""


@dataclass
class Trace:
    """What a search went through, to tell a hard guard from a blind attack.

    Attributes:
        first: Weighted loss of each image at its first step.
        last: The same at its last.
        taken: Steps that each image took before there was nothing left to gain.
        blind: Image-steps whose gradient was zero although there was something left to gain.
        seen: All image-steps.
    """

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    blind: int = 0
    seen: int = 0
    _present: dict[int, tuple[float, float, int]] = field(default_factory=dict)

    @property
    def blind_share(self) -> float:
        """Share of image-steps without a gradient; 0 where there was no step."""
        return self.blind / self.seen if self.seen else 0.0

    @property
    def fell(self) -> bool:
        """Whether the loss was lower at the end than at the start, on average over images."""
        return not self.first or sum(self.last) < sum(self.first)

    def note(self, rows: Tensor, losses: Tensor) -> None:
        """Note the losses of those images of the chunk that are still sought [R]."""
        for row, loss in zip(rows.tolist(), losses.tolist(), strict=True):
            begun, _, steps = self._present.get(row, (loss, loss, -1))
            self._present[row] = (begun, loss, steps + 1)

    def note_steps(self, images: int, blind: int) -> None:
        """Count image-steps, and those without a gradient."""
        self.seen += images
        self.blind += blind

    def close(self) -> None:
        """End the chunk."""
        for begun, ended, steps in self._present.values():
            self.first.append(begun)
            self.last.append(ended)
            self.taken.append(steps)
        self._present.clear()


def check_manner(manner: str, weight: float) -> None:
    """Refuse an unknown manner, or a weight that is none.

    Raises:
        ConfigurationError: It is.
    """
    if manner not in get_args(Manner):
        raise ConfigurationError(f"manner is {manner!r}; there are {get_args(Manner)}.")
    if not weight >= 0:
        raise ConfigurationError(f"weight is {weight}; expected a weight >= 0.")


def chunk_length(shape: torch.Size, looks: int) -> int:
    """Return how many images [C, H, W] are attacked together, each looked at so many times."""
    return max(1, CHUNK_VALUES // (max(1, shape.numel()) * looks))


def descend(
    objective: Objective,
    clean: Tensor,
    effort: Effort,
    *,
    manner: Manner = "joint",
    weight: float = 1.0,
    trace: Trace | None = None,
) -> Tensor:
    """Return the best iterate of each image, in 8 bits.

    Of all iterates, each image keeps one that wins the model over, if there is one, and of these
    that of least loss of the guard; else that of least loss of the model. An image for which there
    is nothing left to gain is done.

    Args:
        objective: What is sought.
        clean: Images in [0, 1] [B, C, H, W].
        effort: How far and how long.
        manner: How the two losses are weighed against one another.
        weight: Weight of the guard's loss where that is ``joint``.
        trace: Where to note what happens.
    """
    trace = trace or Trace()
    change, low, high = _start(clean, effort)
    velocity = torch.zeros_like(change)
    kept = quantize(clean)
    device = clean.device
    least = torch.full((len(clean),), torch.inf, dtype=torch.float64, device=device)
    winning = torch.zeros(len(clean), dtype=torch.bool, device=device)
    rows = torch.arange(len(clean), device=device)
    for step in range(effort.steps + 1):
        moved = change[rows].detach().requires_grad_()
        seen = rounded(clean[rows] + moved)
        sight = objective(seen, rows)
        won = sight.won.to(device)
        model, guard = (loss.detach().to(device).double() for loss in (sight.model, sight.guard))
        value = torch.where(won, guard, model)
        before = winning[rows]
        better = (won & ~before) | ((won == before) & (value < least[rows]))
        chosen = rows[better]
        kept[chosen], least[chosen] = quantize(seen.detach()[better]), value[better]
        winning[rows] |= won
        # Of the model alone more than being wrong is wanted, so both losses have to be nothing.
        left = (guard > 0) | (model > 0)
        trace.note(rows, model + weight * guard)
        if step == effort.steps or not bool(left.any()):
            break
        gradient = _gradient(sight, moved, manner, weight)
        size = gradient.abs().mean((1, 2, 3), keepdim=True)
        trace.note_steps(len(rows), int((left & (size.flatten() == 0)).sum()))
        pace = MOMENTUM * velocity[rows] + gradient / size.clamp(min=1e-12)
        length = effort.eps * FIRST_STEP * (LAST_STEP / FIRST_STEP) ** (step / effort.steps)
        velocity[rows] = pace
        change[rows] = (moved.detach() - length * pace.sign()).clamp(low[rows], high[rows])
        rows = rows[left]
    trace.close()
    return kept


def _start(clean: Tensor, effort: Effort) -> tuple[Tensor, Tensor, Tensor]:
    """Return a random change, and the least and the largest that a pixel may have."""
    low, high = (-clean).clamp(min=-effort.eps), (1 - clean).clamp(max=effort.eps)
    if effort.gray:
        low, high = low.amax(1, keepdim=True), high.amin(1, keepdim=True)
    generator = torch.Generator().manual_seed(effort.seed)
    return low + (high - low) * torch.rand(low.shape, generator=generator).to(clean), low, high


def _gradient(sight: Sight, change: Tensor, manner: Manner, weight: float) -> Tensor:
    if manner == "joint":
        whole = sight.model.sum() + (weight * sight.guard.sum() if weight else 0)
        return torch.autograd.grad(whole, change)[0]
    (model,) = torch.autograd.grad(sight.model.sum(), change, retain_graph=True)
    (guard,) = torch.autograd.grad(sight.guard.sum(), change)
    won = sight.won.view(-1, 1, 1, 1)
    if manner == "orthogonal":
        model, guard = _apart(model, guard), _apart(guard, model)
    return torch.where(won, guard, model)


def _apart(gradient: Tensor, other: Tensor) -> Tensor:
    """Return the part of a gradient that is orthogonal to another one, image by image."""
    along = (gradient * other).sum((1, 2, 3), keepdim=True)
    return gradient - along / other.square().sum((1, 2, 3), keepdim=True).clamp(min=1e-20) * other
