"""Attention: its weights are held constant, as in a reference that detaches them; einsum."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrpguard.errors import UnsupportedOperatorError
from lrpguard.lrp import COMPOSITES, conservation, relevance
from tests.nets import (
    WEIGHT,
    Between,
    Body,
    assert_equals_reference,
    assert_same,
    epsilon,
    images,
    randomized,
)

TOKENS, WIDTH, HEADS = 16, 64, 4
ALLOWED = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(2).roll(1, 1)
ALLOWED.fill_diagonal_(True)
OFFSET = torch.linspace(-1, 1, TOKENS * TOKENS, dtype=torch.float64).view(TOKENS, TOKENS)


def tokens(t: Tensor) -> Tensor:
    return t.reshape(len(t), TOKENS, WIDTH)


def heads(t: Tensor) -> Tensor:
    return t.view(len(t), -1, HEADS, t.shape[-1] // HEADS).transpose(1, 2)


def joined(t: Tensor) -> Tensor:
    return t.transpose(1, 2).flatten(2)


def weights(q: Tensor, k: Tensor, mask: Tensor | None = None, scale: float = 0.25) -> Tensor:
    """Return softmax(q k^T scale + mask) [B, heads, L, S]; 0.25 is the usual scale of width 16."""
    scores = torch.matmul(q * scale, k.mT)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(mask.logical_not(), float("-inf"))
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1)


def projected(net: Any, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (heads(part) for part in net.qkv(tokens(t)).chunk(3, -1))
    return q, k, v


CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({"is_causal": True}, {"mask": torch.ones_like(ALLOWED).tril()}),
    "bool mask": ({"attn_mask": ALLOWED}, {"mask": ALLOWED}),
    "float mask": ({"attn_mask": OFFSET}, {"mask": OFFSET}),
    "scale": ({"scale": 0.7}, {"scale": 0.7}),
}


class TestAttention:
    """The attention weights are held constant; relevance goes to the values (CP-LRP)."""

    @pytest.mark.parametrize("name", CALLS)
    def test_scaled_dot_product(self, name: str) -> None:
        given, by_hand = CALLS[name]

        def body(net: Any, t: Tensor) -> Tensor:
            return joined(F.scaled_dot_product_attention(*projected(net, t), **given))

        def reference(net: Any, t: Tensor) -> Tensor:
            q, k, v = projected(net, t)
            return joined(weights(q, k, **by_hand).detach() @ v)

        assert_equals_reference(body, reference, qkv=nn.Linear(WIDTH, 3 * WIDTH))

    @pytest.mark.parametrize(
        "mixed",
        [
            lambda q, k, v: weights(q, k) @ v,
            lambda q, k, v: weights(q, k, mask=ALLOWED) @ v,
            lambda q, k, v: weights(q, k, mask=OFFSET) @ v,
            lambda q, k, v: torch.einsum(
                "bhls,bhsd->bhld", (torch.einsum("bhld,bhsd->bhls", q, k) / 4).softmax(-1), v
            ),
            lambda q, k, v: (v.mT @ F.softmax(k @ q.mT / 4, dim=-2)).mT,
            lambda q, k, v: torch.bmm(weights(q, k).flatten(0, 1), v.flatten(0, 1)).unflatten(
                0, v.shape[:2]
            ),
            lambda q, k, v: weights(F.normalize(q, dim=-1), F.normalize(k, dim=-1)) @ v,
        ],
        ids=["matmul", "bool mask", "offset", "einsum", "transposed", "bmm", "cosine"],
    )
    def test_written_by_hand(self, mixed: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        def reference(net: Any, t: Tensor) -> Tensor:
            q, k, v = projected(net, t)
            # What makes the weights of q and k alone cannot tell them from constants.
            return joined(mixed(q.detach(), k.detach(), v))

        assert_equals_reference(
            lambda net, t: joined(mixed(*projected(net, t))),
            reference,
            qkv=nn.Linear(WIDTH, 3 * WIDTH),
        )

    @pytest.mark.parametrize("need_weights", [False, True])
    @pytest.mark.parametrize("batch_first", [False, True])
    @pytest.mark.parametrize("options", [{}, {"bias": False}, {"vdim": WIDTH, "kdim": WIDTH // 2}])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_multi_head_module(
        self, need_weights: bool, batch_first: bool, options: dict[str, Any], frozen: bool
    ) -> None:
        def body(net: Any, t: Tensor) -> Tensor:
            query = tokens(t) if batch_first else tokens(t).transpose(0, 1)
            key = query[..., : net.inner.kdim]
            out: Tensor = net.inner(query, key, query, need_weights=need_weights)[0]
            return out if batch_first else out.transpose(0, 1)

        def reference(net: Any, t: Tensor) -> Tensor:
            inner, query = net.inner, tokens(t)
            if inner.in_proj_weight is None:
                matrices = (inner.q_proj_weight, inner.k_proj_weight, inner.v_proj_weight)
            else:
                matrices = inner.in_proj_weight.chunk(3)
            biases = (None,) * 3 if inner.in_proj_bias is None else inner.in_proj_bias.chunk(3)
            key = query[..., : inner.kdim]
            q, k, v = (
                heads(F.linear(x, matrix, bias))
                for x, matrix, bias in zip((query, key, query), matrices, biases, strict=True)
            )
            out: Tensor = inner.out_proj(joined(weights(q, k).detach() @ v))
            return out

        inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)
        inner.requires_grad_(not frozen)  # torch takes a fast path for frozen attention
        assert_equals_reference(body, reference, inner=inner)

    @pytest.mark.parametrize("norm_first", [False, True])
    def test_encoder_layer_of_torch(self, norm_first: bool) -> None:
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 32, activation="gelu", batch_first=True, norm_first=norm_first
        )
        model = randomized(Between(lambda net, t: net.inner(tokens(t)), inner=layer))
        books = conservation(model, images(), composite=epsilon(0.1))
        assert books.residual <= 1e-10
        assert books.input != 0

    @pytest.mark.parametrize(
        ("attend", "operator"),
        [
            (
                lambda net, q: F.scaled_dot_product_attention(q, q, net.memory[: len(q)]),
                "scaled_dot_product_attention",
            ),
            (
                lambda net, q: net.inner(q, net.memory[: len(q)], net.memory[: len(q)])[0],
                "multi_head_attention_forward",
            ),
            (
                lambda net, q: weights(q, q) @ net.memory[: len(q)],
                "softmax",
            ),
        ],
        ids=["functional", "module", "by hand"],
    )
    def test_constant_values_are_refused(self, attend: Body, operator: str) -> None:
        """What depends on the input by the attention weights alone would be lost unseen."""
        model = Between(
            lambda net, t: tokens(t) + attend(net, tokens(t)),
            memory=nn.Parameter(torch.zeros(8, TOKENS, WIDTH)),
            inner=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
        )
        with pytest.raises(UnsupportedOperatorError) as caught:
            relevance(randomized(model), images())
        assert operator in caught.value.operator or operator == "softmax"


@pytest.mark.parametrize(
    ("product", "plain"),
    [
        (lambda t, w: torch.einsum("bchw,wk->bchk", t, w), lambda t, w: t @ w),
        (lambda t, w: torch.einsum("kw,bchw->bchk", [w, t]), lambda t, w: t @ w.T),
        (lambda t, w: torch.einsum(t, [0, 1, 2, 3], w, [3, 4], [0, 1, 2, 4]), lambda t, w: t @ w),
        (lambda t, w: torch.einsum("bchw->bcwh", t), lambda t, w: t.mT),
    ],
)
def test_einsum_with_a_constant_is_a_dense_layer(
    product: Callable[[Tensor, Tensor], Tensor], plain: Callable[[Tensor, Tensor], Tensor]
) -> None:
    weight = nn.Parameter(torch.zeros(16, 16))
    model = randomized(Between(lambda net, t: F.relu(product(t, net.weight)), weight=weight))
    other = copy.deepcopy(model)
    other.body = lambda net, t: F.relu(plain(t, net.weight))
    assert_same(model, other, images())
    gamma = COMPOSITES["epsilon-gamma-box"]
    assert conservation(model, images(), composite=gamma).residual <= 1e-10


def test_einsum_with_two_constants_is_refused() -> None:
    def body(net: Any, t: Tensor) -> Tensor:
        result: Tensor = torch.einsum("bchw,wk,kl->bchl", t, WEIGHT, WEIGHT)
        return result

    with pytest.raises(UnsupportedOperatorError, match="more than one constant"):
        relevance(randomized(Between(body)), images())
