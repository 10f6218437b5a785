"""Copies run in steps: the same as at once, up to where they are asked for."""

from __future__ import annotations

import pytest
import torch

from lrpguard.attribution.methods import Lrp
from lrpguard.copies import CopyRun
from lrpguard.lrp.composites import EPSILON
from lrpguard.noise import key_bytes
from lrpguard.smoothing import Smoothing, clean_logits, explain
from tests.support import Wrapped, images, small_net

IMAGE = images(1, seed=4)


def run(model: torch.nn.Module, *, chunk: int) -> CopyRun:
    clean = clean_logits(model, IMAGE)
    return CopyRun(
        model,
        IMAGE[0],
        clean[0],
        clean.argmax(1)[0],
        sigma=Smoothing().sigma,
        key=key_bytes(0),
        chunk=chunk,
        method=Lrp(EPSILON),
    )


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_steps_add_up_to_one_run(chunk: int) -> None:
    model = small_net()
    stepped = run(model, chunk=chunk)
    first = stepped.until(4)
    kept = first.relevance_variance.clone()
    whole, once = stepped.until(10), explain(model, IMAGE, n=10)
    assert (first.n, whole.n) == (4, 10)
    assert torch.equal(first.relevance_variance, kept)  # going on does not change what was given
    assert torch.equal(whole.noisy_logits[:, :4], first.noisy_logits)
    torch.testing.assert_close(whole.noisy_logits, once.noisy_logits)
    torch.testing.assert_close(whole.relevance_variance, once.relevance_variance)
    torch.testing.assert_close(
        first.relevance_mean, explain(model, IMAGE, n=4).relevance_mean, rtol=1e-4, atol=1e-6
    )


def test_no_copy_is_run_twice_and_none_beyond() -> None:
    seen: list[int] = []
    model = Wrapped(
        small_net(), lambda batch: seen.append(len(batch)) if torch.is_grad_enabled() else None
    )
    stepped = run(model, chunk=4)
    stepped.until(5)
    stepped.until(5)
    stepped.until(7)
    assert seen == [4, 1, 2]
