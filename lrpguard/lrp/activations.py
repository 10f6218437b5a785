"""Nonlinear operators: identity-rule activations, gates, normalisations, attention.

A gate (sigmoid, softmax, a standard deviation) is a coefficient: it is held constant, and all
relevance flows through what it multiplies. For attention this is CP-LRP (Ali et al. 2022).
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrpguard.lrp.calls import Call, constant, plain_name, require_constant
from lrpguard.lrp.layers import affine, resolved
from lrpguard.lrp.rules import RefusalError
from lrpguard.lrp.trace import Trace, carries, put_gate, put_trace


def identity_rule(call: Call) -> Tensor:
    """SiLU, GELU and their like: relevance passes unchanged, ``c * f(z) / z``, with 0 / 0 = 0."""
    x: Tensor = call.argument(0, "input")
    rest = {k: v for k, v in call.kwargs.items() if k != "input"}
    with torch.no_grad():
        y = call.function(x.detach().clone(), *call.args[1:], **rest)
    return _times_ratio(call, x, y)


def clipped(call: Call) -> Tensor:
    """ReLU6, hardtanh and clamp to an interval that holds 0: the identity rule."""
    x: Tensor = call.argument(0, "input")
    low, high = call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0)
    if plain_name(call.function) == "relu6":
        low, high = 0.0, 6.0
    elif plain_name(call.function) in ("clamp", "clip"):
        low, high = call.argument(1, "min"), call.argument(2, "max")
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    if isinstance(low, Tensor) or isinstance(high, Tensor) or not low <= 0 <= high:
        raise RefusalError(f"it clips to [{low}, {high}]; only an interval with 0 has a rule.")
    with torch.no_grad():
        y = x.clamp(low, high)
    return _times_ratio(call, x, y)


def _times_ratio(call: Call, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        ratio = torch.where(x == 0, 0, y / x)
    result = x.mul_(ratio) if _in_place(call) else x * ratio
    result.detach().copy_(y)  # x * (y / x) may miss y by rounding
    return result


def _in_place(call: Call) -> bool:
    if call.in_place:
        return True
    try:
        bound = inspect.signature(call.function).bind(*call.args, **call.kwargs)
    except (TypeError, ValueError):  # a builtin without a signature has no inplace argument
        return bool(call.kwargs.get("inplace", False))
    return bool(bound.arguments.get("inplace", False))


def gate(call: Call) -> Any:
    """Sigmoid, softmax, variance, norm: a coefficient."""
    with torch.no_grad():
        return put_gate(call.run(), plain_name(call.function))


def layer_norm(call: Call) -> Tensor:
    """Layer normalisation, its standard deviation held constant."""
    x: Tensor = call.argument(0, "input")
    dims = tuple(range(-len(call.argument(1, "normalized_shape")), 0))
    eps = float(call.argument(4, "eps", 1e-5))
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    return _scaled(call, _standardized(x, dims, eps), weight, bias)


def group_norm(call: Call) -> Tensor:
    """Group normalisation, its standard deviation held constant."""
    x: Tensor = call.argument(0, "input")
    groups = int(call.argument(1, "num_groups"))
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    grouped = x.reshape(x.shape[0], groups, -1)
    y = _standardized(grouped, (-1,), float(call.argument(4, "eps", 1e-5))).reshape(x.shape)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    weight, bias = (v if v is None else constant(v).view(shape) for v in (weight, bias))
    return _scaled(call, y, weight, bias)


def rms_norm(call: Call) -> Tensor:
    """Root-mean-square normalisation, its divisor held constant."""
    x: Tensor = call.argument(0, "input")
    dims = tuple(range(-len(call.argument(1, "normalized_shape")), 0))
    eps = call.argument(3, "eps")
    with torch.no_grad():
        square = x.square().mean(dims, keepdim=True)
        scale = torch.rsqrt(square + (torch.finfo(x.dtype).eps if eps is None else eps))
    return _scaled(call, x * scale, call.argument(2, "weight"), None)


def normalize(call: Call) -> Tensor:
    """``F.normalize``: a division by a norm that is held constant."""
    x: Tensor = call.argument(0, "input")
    p, dim = call.argument(1, "p", 2.0), call.argument(2, "dim", 1)
    eps = call.argument(3, "eps", 1e-12)
    with torch.no_grad():
        norm = torch.linalg.vector_norm(x, p, dim, keepdim=True).clamp_min(eps)
    scaled: Tensor = x / norm
    return scaled


def _standardized(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    with torch.no_grad():
        scale = torch.rsqrt(x.var(dims, correction=0, keepdim=True) + eps)
    centred: Tensor = (x - x.mean(dims, keepdim=True)) * scale
    return centred


def _scaled(call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    require_constant(weight, "weight")
    require_constant(bias, "bias")
    y = x if weight is None else x * constant(weight)
    return y if bias is None else y + call.booked(constant(bias))


def scaled_dot_product_attention(call: Call) -> Tensor:
    """Attention with its weights held constant: relevance flows to the values."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    q, k, v, mask, dropout, causal = (call.argument(i, name) for i, name in enumerate(names))
    scale = call.kwargs.get("scale")
    if dropout or call.kwargs.get("enable_gqa"):
        raise RefusalError("attention with dropout or grouped queries has no rule yet.")
    require_constant(mask, "mask")
    with torch.no_grad():
        scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
            scores = scores.masked_fill(~allowed, -torch.inf)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            scores = scores + mask
        weights = scores.softmax(-1)
    mixed: Tensor = weights @ v
    if not carries(v):
        gated: Tensor = put_gate(mixed, "scaled_dot_product_attention")
        return gated
    return put_trace(mixed, Trace())


def multi_head_attention(call: Call) -> tuple[Tensor, Tensor | None]:
    """``F.multi_head_attention_forward``: values by their projection, weights held constant."""
    signature = inspect.signature(F.multi_head_attention_forward)
    given = signature.bind(*call.args, **call.kwargs)
    given.apply_defaults()
    a = given.arguments
    odd = [n for n in ("bias_k", "bias_v", "static_k", "static_v") if a[n] is not None]
    if odd or a["add_zero_attn"] or a["query"].ndim != 3:
        raise RefusalError(f"attention with {odd or 'this form of input'} has no rule yet.")
    if not carries(a["value"]):
        raise RefusalError("its values are constants, so only its weights depend on the input.")
    if a["training"] and a["dropout_p"] > 0:
        raise RefusalError("attention dropout is active; put the model in eval mode.")
    with torch.no_grad():
        options = {**a, "need_weights": True, "average_attn_weights": False}
        weights = call.function(**options)[1]  # [B, heads, L, S]
    value, width = a["value"], a["embed_dim_to_check"]
    packed, bias = a["in_proj_weight"], a["in_proj_bias"]
    projection = a["v_proj_weight"] if a["use_separate_proj_weight"] else packed[2 * width :]
    bias = None if bias is None else bias[2 * width :]
    values = resolved(affine(call, F.linear, value, projection, bias))
    batch, heads = weights.shape[:2]
    split = values.reshape(len(value), batch, heads, -1).permute(1, 2, 0, 3)
    joined = (weights @ split).permute(2, 0, 1, 3).reshape(weights.shape[2], batch, -1)
    put_trace(joined, Trace())
    out = affine(call, F.linear, joined, a["out_proj_weight"], a["out_proj_bias"])
    if not a["need_weights"]:
        return out, None
    shown = weights.mean(1) if a["average_attn_weights"] else weights
    return out, put_gate(shown, "attention weights")
