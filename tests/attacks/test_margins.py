"""The margin by hand, and the gradient through rounding."""

import torch

from lrpguard.attacks.margins import margin, rounded
from lrpguard.attacks.pgd import quantize


def test_margin_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0]])

    assert margin(logits, torch.tensor([0, 0])).tolist() == [1.0, -5.0]


def test_rounded_is_8_bits_with_the_gradient_of_the_identity() -> None:
    images = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()

    result = rounded(images)
    (gradient,) = torch.autograd.grad((2 * result).sum(), images)

    torch.testing.assert_close(result, quantize(images), atol=1e-7, rtol=0)
    assert torch.equal(gradient, torch.full_like(images, 2.0))
