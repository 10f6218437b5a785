"""A guard in the shape of the bare model."""

from __future__ import annotations

from torch import Tensor, nn

from lrpguard.verdict import Verdict


class GuardedClassifier(nn.Module):
    """A guard in the shape of the bare model: logits in place of a verdict.

    Where a request is flagged and restored, its logits are those behind the restored label:
    with :class:`lrpguard.Consensus` the model's own, with those of the two labels exchanged, with
    :class:`lrpguard.Whitening` those of the restored image. Where no label was accepted the
    model's own logits stand, since logits cannot say "unknown": use the guard itself where
    abstention matters.

    Args:
        guard: The :class:`lrpguard.Guard`.
    """

    def __init__(self, guard: nn.Module) -> None:
        super().__init__()
        self.guard = guard
        self.training = False

    def train(self, mode: bool = True) -> GuardedClassifier:
        """Leave the wrapped model's mode alone, as :meth:`lrpguard.Guard.train` does."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] for images [B, C, H, W] in [0, 1]; raises as the guard does."""
        verdict: Verdict = self.guard(images)
        return verdict.restored_logits
