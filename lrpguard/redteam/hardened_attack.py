"""The attack on hardened guards: it follows every signal that the variant reads.

The key is not known: noise is drawn afresh at each step, and where some signals are drawn for each
request, the mean over all draws is followed (expectation over transformations).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrpguard.attacks.adaptive.aware import best_wrong, in_chunks, misled
from lrpguard.attacks.adaptive.descent import Effort, Manner, Objective, Sight, Trace
from lrpguard.attacks.adaptive.explanation import COST
from lrpguard.attacks.adaptive.looks import LOOKED_AT, Noise, look
from lrpguard.attacks.adaptive.surrogate import Surrogate
from lrpguard.guard import Guard
from lrpguard.redteam.hardening import GUARD, LOUD, STRONG, Hardened, beside
from lrpguard.redteam.relevance_signals import RELEVANCE
from lrpguard.views import STRONG_VIEWS

AIM = 0.5
"""Share of the threshold below which there is nothing more to gain from a signal: the guard's
noise differs from the attack's."""

ALPHA = 0.05
"""False-positive rate whose threshold is aimed at."""


def hardened_pgd(
    guard: Guard,
    hardened: Hardened,
    images: Tensor,
    labels: Tensor,
    effort: Effort,
    *,
    manner: Manner = "joint",
    weight: float = 1.0,
    trace: Trace | None = None,
) -> Tensor:
    """Fool the model and pass the hardened guard, as guard-aware PGD does the guard.

    Args:
        guard: The guard beneath. Its key is not looked at.
        hardened: The variant, with all that calibrates it.
        images: Clean images in [0, 1], [B, C, H, W], best of whole 8-bit levels.
        labels: Classes they are led away from, integers [B].
        effort: How far and how long; ``copies`` of each noise.
        manner: ``"joint"``, ``"selective"`` or ``"orthogonal"``.
        weight: Weight of the guard's loss where that is ``joint``.
        trace: Where to note how the search went.

    Returns:
        Images of whole 8-bit levels [B, C, H, W].

    Raises:
        LrpGuardError: As for :func:`lrpguard.attacks.adaptive.guard_aware_pgd`.
    """
    surrogate = Surrogate.of(guard)
    others = [name for name in hardened.variant.signals if name != GUARD]
    generator = torch.Generator().manual_seed(effort.seed + 1)
    aim = AIM * float(hardened.threshold(ALPHA).mean())

    def fresh(batch: Tensor, name: str) -> Tensor:
        return torch.randn((effort.copies, *batch.shape), generator=generator).to(batch)

    def objective(noise: Noise, classes: Tensor) -> Objective:
        def see(batch: Tensor, rows: Tensor) -> Sight:
            of = classes[rows]
            looks = look(guard.model, batch, noise, guard.smoothing.sigma)
            wrong = best_wrong(looks.mean(), of)
            model, won = misled(looks.own, of, wrong)
            own = surrogate.anomaly(batch, looks, wrong).clamp(min=1e-6).sqrt()[:, None]
            more = [beside(guard, batch, wrong, others, fresh).cpu()] if others else []
            over = (hardened.standard(torch.cat([own, *more], 1)) - aim).clamp(min=0)
            loss = (hardened.weights() * over).sum(1)
            return Sight(model, loss.to(model.device), won)

        return see

    return in_chunks(
        guard,
        images,
        labels,
        effort,
        objective,
        manner=manner,
        weight=weight,
        trace=trace,
        beside=passes(hardened, effort.copies) - 1 - effort.copies,
    )


def passes(hardened: Hardened, copies: int) -> int:
    """Return how many forward and backward passes of one image a step of the attack takes."""
    signals = hardened.variant.signals
    louder = copies * sum(name in LOUD for name in signals)
    strong = len(STRONG_VIEWS) * (STRONG in signals)
    composites = len({RELEVANCE[name][0] for name in signals if name in RELEVANCE})
    explained = copies * composites * (1 + COST)  # the map itself, and the gradient of its like
    return 1 + copies + LOOKED_AT + louder + strong + explained
