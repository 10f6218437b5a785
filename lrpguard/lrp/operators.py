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

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.rules import Rule

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

ESCAPES = frozenset(
    "item tolist numpy detach data grad __array__ __complex__ __dlpack__ __float__ __index__ "
    "__int__ __set__ __setitem__".split()
)
"""Operators through which a value would leave the relevance path unseen."""

_CARRIES = "_lrpguard_carries"
_STABILIZER = "_lrpguard_stabilizer"


class RefusalError(Exception):
    """Raised by a handler; the mode adds the operator's and the module's name."""


@dataclass(frozen=True)
class Call:
    """One call of an operator under the mode."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    rule: Rule
    ledger: Ledger | None

    def run(self) -> Any:
        """Run the operator as it was called."""
        return self.function(*self.args, **self.kwargs)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)


_DUNDERS = {
    "__add__": "add",
    "__div__": "div",
    "__getitem__": "getitem",
    "__iadd__": "add",
    "__idiv__": "div",
    "__imul__": "mul",
    "__isub__": "sub",
    "__itruediv__": "div",
    "__matmul__": "matmul",
    "__mul__": "mul",
    "__neg__": "neg",
    "__pos__": "positive",
    "__radd__": "add",
    "__rmatmul__": "matmul",
    "__rmul__": "mul",
    "__rsub__": "rsub",
    "__sub__": "sub",
    "__truediv__": "div",
}


def plain_name(function: Callable[..., Any]) -> str:
    """Return the operator's name without its in-place, arithmetic or reflected spelling."""
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":  # a property such as Tensor.T or Tensor.shape
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    if name.startswith("__"):
        return _DUNDERS.get(name, name)
    return name.rstrip("_").removeprefix("_")


def carries(value: Any) -> bool:
    """Say whether a value depends on the input whose relevance is sought."""
    return isinstance(value, Tensor) and getattr(value, _CARRIES, False)


def mark(value: Any) -> Any:
    """Mark every differentiable tensor in an operator's result as carrying relevance."""
    for tensor in tensors(value):
        if tensor.requires_grad:
            setattr(tensor, _CARRIES, True)
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)


def constant(value: Any) -> Any:
    """Return a weight cut off from the graph, so that no weight gradient is prepared."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def _require_constant(value: Any, what: str) -> None:
    if carries(value):
        raise RefusalError(
            f"its {what} depends on the input, so it is a product of two activations."
        )


def _transparent(call: Call) -> Any:
    return call.run()


def _dropout(call: Call) -> Any:
    if call.argument(2, "training", default=True) and call.argument(1, "p", 0.5) > 0:
        raise RefusalError("dropout is active; put the model in eval mode.")
    return call.run()


def _weighted(call: Call) -> Tensor:
    """Convolutions and dense layers: ``function(input, weight, bias=None, ...)``."""
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    _require_constant(weight, "weight")
    _require_constant(bias, "bias")
    if bias is not None:
        bias = call.ledger.leaf(bias) if call.ledger else constant(bias)
    source = call.argument(0, "input")
    rest = {k: v for k, v in call.kwargs.items() if k not in ("input", "weight", "bias")}
    z: Tensor = call.function(source, constant(weight), bias, *call.args[3:], **rest)
    return _attach(call, z)


def _matmul(call: Call) -> Tensor:
    """A product with one constant factor: a dense layer without bias."""
    left, right = call.args[0], call.argument(1, "other", call.argument(1, "mat2"))
    if carries(left) and carries(right):
        _require_constant(right, "second factor")
    left, right = (v if carries(v) else constant(v) for v in (left, right))
    return _attach(call, call.function(left, right))


def _addmm(call: Call) -> Tensor:
    """``addmm(bias, left, right)``: a dense layer written by hand."""
    bias, left, right = call.args
    _require_constant(bias, "bias")
    if call.kwargs:
        raise RefusalError(
            f"the arguments {sorted(call.kwargs)} have no rule; use torch.nn.Linear."
        )
    if carries(left) and carries(right):
        _require_constant(right, "second factor")
    bias = call.ledger.leaf(bias) if call.ledger else constant(bias)
    left, right = (v if carries(v) else constant(v) for v in (left, right))
    return _attach(call, call.function(bias, left, right))


def _batch_norm(call: Call) -> Tensor:
    """Batch normalisation by running statistics: a scale and a shift a channel.

    Right after a convolution the two are one affine layer, so the convolution's own
    stabilizer is taken back and the rule applies to their joint output, as if the batch
    normalisation had been merged into the convolution.
    """
    x: Tensor = call.argument(0, "input")
    mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
    weight, bias = call.argument(3, "weight"), call.argument(4, "bias")
    if call.argument(5, "training", default=False) or mean is None or variance is None:
        raise RefusalError(
            "it normalises by the statistics of the batch, so one image's relevance would depend "
            "on the others; put the model in eval mode and track running statistics."
        )
    eps = float(call.argument(7, "eps", 1e-5))
    stabilizer = getattr(x, _STABILIZER, None)
    if stabilizer is not None:
        stabilizer.remove()
    mean, variance, weight, bias = (constant(v) for v in (mean, variance, weight, bias))
    scale = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if call.ledger:
        shift = -mean * scale if bias is None else bias - mean * scale
        return _attach(call, x * scale.view(shape) + call.ledger.leaf(shift).view(shape))
    z: Tensor = _BatchNorm.apply(x, mean, variance, weight, bias, eps, scale.view(shape))
    return _attach(call, z)


class _BatchNorm(torch.autograd.Function):
    """The library's forward, and a backward that needs the scale alone, not the input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        scale: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(scale)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        scaled = (gradients[0] * scale).to(gradients[0].dtype)
        return scaled, None, None, None, None, None, None


OWN_FUNCTIONS = ("_BatchNormBackward",)
"""Names of the autograd nodes that this file makes."""


def _attach(call: Call, z: Tensor) -> Tensor:
    handle = call.rule.attach(z, call.ledger)
    if handle is not None:
        setattr(z, _STABILIZER, handle)
    return z


def _sum_of_two(call: Call) -> Any:
    """``a + b`` and ``a - b``: a constant term is a bias."""
    terms = list(call.args[:2])
    if len(terms) < 2:
        terms.append(call.kwargs["other"])
    kwargs = {k: v for k, v in call.kwargs.items() if k != "other"}
    for i, term in enumerate(terms):
        if carries(term):
            continue
        if call.ledger:
            other: Tensor = terms[1 - i]
            leaf = torch.as_tensor(term, dtype=other.dtype, device=other.device)
            terms[i] = call.ledger.leaf(leaf)
        else:
            terms[i] = constant(term)
    return call.function(*terms, *call.args[2:], **kwargs)


def _product(call: Call) -> Any:
    """``a * b`` with one constant factor."""
    left, right = call.args[0], call.argument(1, "other")
    if carries(left) and carries(right):
        raise RefusalError(
            "both factors depend on the input, and lrpguard has no rule for that yet."
        )
    left, right = (v if carries(v) else constant(v) for v in (left, right))
    return call.function(left, right)


def _quotient(call: Call) -> Any:
    left, right = call.args[0], call.argument(1, "other")
    if call.kwargs.get("rounding_mode") is not None:
        raise RefusalError("a rounded quotient has no gradient.")
    _require_constant(right, "divisor")
    return call.function(left, constant(right))


def _pad(call: Call) -> Any:
    mode, value = call.argument(2, "mode", "constant"), call.argument(3, "value")
    if mode == "constant" and value not in (None, 0):
        raise RefusalError(f"it pads with the constant {value}; only padding with 0 has a rule.")
    return call.run()


def _maximum_over(call: Call) -> Any:
    """``x.max(dim)`` routes relevance to the winner; two-argument forms are refused."""
    if isinstance(call.argument(1, "other"), Tensor):
        raise RefusalError("the maximum of two tensors has no rule yet.")
    return call.run()


def _rectifier_with_cap(call: Call) -> Tensor:
    """ReLU6 and hardtanh from 0: the identity rule, ``c * f(z) / z``, with 0 / 0 = 0."""
    x: Tensor = call.argument(0, "input")
    low, high = 0.0, 6.0
    if plain_name(call.function) == "hardtanh":
        low, high = call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0)
    if low != 0 or high <= 0:
        raise RefusalError(f"it clips to [{low}, {high}]; only clipping to [0, c] has a rule.")
    with torch.no_grad():
        kept = x.clamp(low, high)
        ratio = torch.where(kept > 0, kept / x, 0)
    in_place = plain_name(call.function) != getattr(call.function, "__name__", "") or call.argument(
        3 if plain_name(call.function) == "hardtanh" else 1, "inplace", default=False
    )
    return x.mul_(ratio) if in_place else x * ratio


HANDLERS: Mapping[str, Callable[[Call], Any]] = MappingProxyType(
    dict.fromkeys(TRANSPARENT, _transparent)
    | dict.fromkeys(("conv1d", "conv2d", "conv3d", "linear"), _weighted)
    | dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _weighted)
    | dict.fromkeys(("matmul", "mm"), _matmul)
    | dict.fromkeys(("add", "sub", "subtract", "rsub"), _sum_of_two)
    | dict.fromkeys(("mul", "multiply"), _product)
    | dict.fromkeys(("div", "divide", "true_divide"), _quotient)
    | dict.fromkeys(("hardtanh", "relu6"), _rectifier_with_cap)
    | dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
        _dropout,
    )
    | {"addmm": _addmm, "batch_norm": _batch_norm, "max": _maximum_over, "pad": _pad}
)
"""The handler of every operator with a rule, by plain name."""
