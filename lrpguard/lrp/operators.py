"""How each operator that a network calls takes part in relevance propagation.

Every operator on the path from the input to the logits is one of

* *transparent*: positively homogeneous in what carries relevance (reshaping, ReLU,
  pooling, sums, concatenation), so its plain gradient is its rule;
* *affine*: a weighted sum plus a bias, handed to the composite's rule;
* *shifted*: a sum with a constant, which absorbs relevance as a bias does;
* an *identity-rule* activation, which passes ``c * f(z) / z``;
* unknown, and refused by name.

Operators are known by their plain name: ``torch.relu_``, ``Tensor.relu`` and ``F.relu``
are ``relu``; ``Tensor.__iadd__`` and ``torch.add`` are ``add``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lrpguard.lrp import activations, layers, lean
from lrpguard.lrp.calls import Call, constant
from lrpguard.lrp.layers import constant_unless_carrying
from lrpguard.lrp.rules import RefusalError
from lrpguard.lrp.trace import Trace, carries, is_gate, is_nonnegative, put_trace, tensors

RESHAPING = frozenset(
    "T mT alias atleast_3d broadcast_to cat channel_shuffle chunk clone concat concatenate "
    "contiguous cpu cuda diagonal double expand expand_as flatten flip float fold gather getitem "
    "half hsplit hstack identity index_select movedim moveaxis narrow native_channel_shuffle "
    "permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape reshape_as roll "
    "select split split_with_sizes squeeze stack swapaxes swapdims t take_along_dim tensor_split "
    "tile to transpose type type_as unbind unflatten unfold unsqueeze view view_as vsplit vstack "
    "bfloat16".split()
)
PIECEWISE = frozenset(
    "relu leaky_relu amax max_pool1d max_pool2d max_pool3d max_pool1d_with_indices "
    "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
    "adaptive_max_pool3d_with_indices".split()
)
SUMMING = frozenset(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d "
    "avg_pool3d cumsum interpolate mean neg negative positive sum upsample upsample_bilinear "
    "upsample_nearest".split()
)
TRANSPARENT = RESHAPING | PIECEWISE | SUMMING
PRODUCTS = frozenset(("matmul", "mm", "bmm"))
DROPOUT = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout "
    "feature_dropout".split()
)
IDENTITY_RULE = frozenset("celu elu gelu hardswish mish selu silu tanh".split())
GATE_MAKING = frozenset(
    "hardsigmoid linalg_norm linalg_vector_norm norm pow sigmoid softmax square std var "
    "vector_norm".split()
)
GATE_TAKING = PRODUCTS | frozenset("div divide einsum mul multiply true_divide".split())
"""Operators in which an activation may meet a gate."""
OWN_TRACE = (
    PRODUCTS
    | GATE_MAKING
    | DROPOUT
    | frozenset(
        "addmm batch_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
        "einsum linear multi_head_attention_forward scaled_dot_product_attention".split()
    )
)
"""Operators whose handler says itself what its result carries."""
SIGN_KEEPING = TRANSPARENT - {"interpolate", "upsample", "neg", "negative"} | frozenset(
    "dropout dropout2d pad max".split()
)
"""Operators whose result is nonnegative where all they take is."""

CONSTANT_MAKING = frozenset(
    "empty_like full_like new_empty new_full new_ones new_tensor new_zeros ones_like "
    "zeros_like".split()
)
"""Operators that read no more than the shape and type of their first tensor."""

CASTING = frozenset("to type type_as".split())

LIKE = frozenset("expand_as reshape_as to type_as view_as".split())
"""Operators that read no more than the shape and type of any tensor but the first."""

UNRESOLVED = DROPOUT | {"batch_norm", "relu"}
"""Operators that take a pending layer as it is."""

ESCAPES = frozenset(
    "item tolist numpy detach data grad byte char int long short __array__ __complex__ __dlpack__ "
    "__float__ __index__ __int__ __set__ __setitem__".split()
)
"""Operators through which a value would leave the relevance path unseen."""


def _transparent(call: Call) -> Any:
    return call.run()


def _dropout(call: Call) -> Any:
    """Inactive dropout gives back what it takes, a pending layer too."""
    training = call.argument(2, "training", call.kwargs.get("train", True))
    if training and call.argument(1, "p", 0.5) > 0:
        raise RefusalError("dropout is active; put the model in eval mode.")
    return call.argument(0, "input")


def _sum_of_two(call: Call) -> Any:
    """``a + b`` and ``a - b``: a constant term is a bias."""
    first, second = call.argument(0, "input"), call.argument(1, "other")
    kwargs = {k: v for k, v in call.kwargs.items() if k not in ("input", "other")}
    if call.in_place and not carries(first):  # an activation is added to a buffer
        if call.ledger:
            first.copy_(call.ledger.leaf(first))
    else:
        first = _term(call, first, second)
    return call.function(first, _term(call, second, first), *call.args[2:], **kwargs)


def _term(call: Call, term: Any, other: Any) -> Any:
    if carries(term):
        return term
    if call.ledger and isinstance(other, Tensor):
        return call.ledger.leaf(torch.as_tensor(term, dtype=other.dtype, device=other.device))
    return constant(term)


def _product(call: Call) -> Any:
    """``a * b`` with one constant factor or gate."""
    left, right = call.argument(0, "input"), call.argument(1, "other")
    if carries(left) and carries(right):
        raise RefusalError("both factors depend on the input; lrpguard has no rule for that yet.")
    if not call.in_place:
        left = constant_unless_carrying(left)
    return call.function(left, constant_unless_carrying(right))


def _quotient(call: Call) -> Any:
    left, right = call.argument(0, "input"), call.argument(1, "other")
    if call.kwargs.get("rounding_mode") is not None:
        raise RefusalError("a rounded quotient has no gradient.")
    if carries(right):
        raise RefusalError("its divisor depends on the input; lrpguard has no rule for that yet.")
    return call.function(left, constant(right))


def _pad(call: Call) -> Any:
    mode, value = call.argument(2, "mode", "constant"), call.argument(3, "value")
    if mode == "constant" and value not in (None, 0):
        raise RefusalError(f"it pads with the constant {value}; only padding with 0 has a rule.")
    return call.run()


def _max_pool2d(call: Call) -> Any:
    """Max-pooling: the winner takes all."""
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    options = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    if not options.pop("return_indices", False) and call.is_lean(options["input"]):
        pooled = lean.max_pool2d(options.pop("input"), **options)
        if pooled is not None:
            return pooled
    return call.run()


def _maximum_over(call: Call) -> Any:
    """``x.max(dim)`` routes relevance to the winner; two-argument forms are refused."""
    if isinstance(call.argument(1, "other"), Tensor):
        raise RefusalError("the maximum of two tensors has no rule yet.")
    return call.run()


def _joined(call: Call) -> Any:
    """Concatenation: a constant part (a class token) absorbs relevance as a bias does."""
    if call.ledger is None:
        return call.run()
    parts = [p if carries(p) else call.ledger.leaf(p) for p in call.argument(0, "tensors")]
    rest = {k: v for k, v in call.kwargs.items() if k != "tensors"}
    return call.function(parts, *call.args[1:], **rest)


def _addcmul(call: Call) -> Any:
    """``addcmul(shift, a, b)``: a scale and a shift, one of a and b constant."""
    shift, left, right = (
        call.argument(i, n) for i, n in enumerate(("input", "tensor1", "tensor2"))
    )
    if carries(left) and carries(right):
        raise RefusalError("both factors depend on the input; lrpguard has no rule for that yet.")
    scaled = constant_unless_carrying(left) * constant_unless_carrying(right)
    scaled = scaled * call.kwargs.get("value", 1)
    return scaled + (shift if carries(shift) else call.booked(constant(shift)))


def _einsum(call: Call) -> Any:
    """A sum of products: a dense layer in one activation, a gate where there are two."""
    equation, *given = call.args
    operands = list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else given
    carrying = [v for v in operands if carries(v)]
    if len(carrying) > 1:
        return activations.gate(call)
    if len(operands) == 1 or any(is_gate(v) for v in operands):
        plain = [constant_unless_carrying(v) for v in operands]
        return put_trace(call.function(equation, *plain), Trace())
    if len(operands) > 2:
        raise RefusalError("it takes more than one constant; multiply them beforehand.")
    at = [carries(v) for v in operands].index(True)

    def contracted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        z: Tensor = call.function(equation, *((weight, x) if at else (x, weight)))
        return z if bias is None else z + bias

    return layers.affine(call, contracted, operands[at], operands[1 - at], None)


def makes_nonnegative(name: str, call: Call) -> bool:
    """Say whether an operator's result is known to hold no value below zero.

    Args:
        name: Its plain name.
        call: The call.
    """
    if name in ("relu", "relu6"):
        return True
    if name == "hardtanh":
        return bool(call.argument(1, "min_val", -1.0) >= 0)
    if name == "add":  # of two tensors: a number may be below zero
        terms = (call.argument(0, "input"), call.argument(1, "other"))
        nonnegative = all(isinstance(term, Tensor) and is_nonnegative(term) for term in terms)
        return nonnegative and bool(call.kwargs.get("alpha", 1) >= 0)
    taken = (t for t in tensors((call.args, call.kwargs)) if t.is_floating_point())
    return name in SIGN_KEEPING and all(is_nonnegative(t) for t in taken)


HANDLERS: Mapping[str, Callable[[Call], Any]] = MappingProxyType(
    dict.fromkeys(TRANSPARENT, _transparent)
    | dict.fromkeys(("conv1d", "conv2d", "conv3d", "linear"), layers.weighted)
    | dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), layers.weighted)
    | dict.fromkeys(PRODUCTS, layers.product)
    | dict.fromkeys(("cat", "concat", "concatenate", "stack"), _joined)
    | dict.fromkeys(("add", "sub", "subtract", "rsub"), _sum_of_two)
    | dict.fromkeys(("mul", "multiply"), _product)
    | dict.fromkeys(("div", "divide", "true_divide"), _quotient)
    | dict.fromkeys(("hardtanh", "relu6", "clamp", "clip"), activations.clipped)
    | dict.fromkeys(IDENTITY_RULE, activations.identity_rule)
    | dict.fromkeys(GATE_MAKING, activations.gate)
    | dict.fromkeys(DROPOUT, _dropout)
    | {
        "addcmul": _addcmul,
        "addmm": layers.addmm,
        "batch_norm": layers.batch_norm,
        "einsum": _einsum,
        "group_norm": activations.group_norm,
        "layer_norm": activations.layer_norm,
        "max": _maximum_over,
        "max_pool2d": _max_pool2d,
        "multi_head_attention_forward": activations.multi_head_attention,
        "normalize": activations.normalize,
        "pad": _pad,
        "relu": layers.relu,
        "rms_norm": activations.rms_norm,
        "scaled_dot_product_attention": activations.scaled_dot_product_attention,
    }
)
"""The handler of every operator with a rule, by plain name."""
