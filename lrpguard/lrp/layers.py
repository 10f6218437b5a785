"""Affine operators: convolutions, dense layers, matrix products, batch normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrpguard.lrp import lean
from lrpguard.lrp.affine import Adjoint, Affine, Flow, Kind, Weights
from lrpguard.lrp.calls import Call, constant, plain_name, require_constant
from lrpguard.lrp.convolution import Convolution
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.rules import GradientRule, RefusalError, Rule, WeightRule
from lrpguard.lrp.trace import Trace, carries, is_gate, is_raw, put_gate, put_trace, trace_of


def weighted(call: Call) -> Tensor:
    """Convolutions and dense layers: ``function(input, weight, bias=None, ...)``."""
    x, weight, bias = (
        call.argument(0, "input"),
        call.argument(1, "weight"),
        call.argument(2, "bias"),
    )
    require_constant(weight, "weight")
    require_constant(bias, "bias")
    rest = {k: v for k, v in call.kwargs.items() if k not in ("input", "weight", "bias")}
    function, more = call.function, call.args[3:]
    name = plain_name(function)
    geometry, adjoint = None, _dense_adjoint if name == "linear" else None
    if name != "linear" and not name.startswith("conv_transpose"):
        geometry = Convolution.of(x, weight, *more, **rest)
        adjoint = None if geometry is None else geometry.gradient
    return affine(
        call,
        lambda x, weight, bias: function(x, weight, bias, *more, **rest),
        x,
        weight,
        bias,
        kind="dense" if name == "linear" else "convolution",
        output_dim=_output_dim(call) if name.startswith("conv_transpose") else 0,
        adjoint=adjoint,
        geometry=geometry,
    )


def _dense_adjoint(c: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
    return c @ weight


def _output_dim(call: Call) -> int | None:
    """Return where a transposed convolution's weight has its output channels."""
    return 1 if call.argument(6, "groups", 1) == 1 else None


def product(call: Call) -> Any:
    """A matrix product: a dense layer where one factor is constant.

    An activation times a gate (attention weights times values) passes relevance to the
    activation. Two activations (queries times keys) give a gate.
    """
    left, right = call.argument(0, "input"), call.argument(1, "other", call.argument(1, "mat2"))
    if carries(left) and carries(right):
        return put_gate(call.function(left.detach(), right.detach()), plain_name(call.function))
    function = call.function
    if is_gate(left) or is_gate(right):
        mixed = function(constant_unless_carrying(left), constant_unless_carrying(right))
        return put_trace(mixed, Trace())
    if carries(left):
        return affine(call, lambda x, w, b: _plus(function(x, w), b), left, right, None)
    return affine(call, lambda x, w, b: _plus(function(w, x), b), right, left, None)


def constant_unless_carrying(value: Any) -> Any:
    """Return an activation as it is, and anything else cut off from the graph."""
    return value if carries(value) else constant(value)


def addmm(call: Call) -> Tensor:
    """``addmm(bias, left, right)``: a dense layer written by hand."""
    bias, left, right = (call.argument(i, n) for i, n in enumerate(("input", "mat1", "mat2")))
    require_constant(bias, "bias")
    if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
        raise RefusalError("alpha and beta have no rule; use torch.nn.Linear.")
    if carries(left):
        require_constant(right, "second factor")
        return affine(call, lambda x, w, b: _addmm(b, x, w), left, right, bias)
    return affine(call, lambda x, w, b: _addmm(b, w, x), right, left, bias)


def _addmm(bias: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left @ right if bias is None else torch.addmm(bias, left, right)


def _plus(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias


def affine(
    call: Call,
    function: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    kind: Kind = "dense",
    output_dim: int | None = None,
    adjoint: Adjoint | None = None,
    geometry: Convolution | None = None,
) -> Tensor:
    """Run an affine operator; its rule is applied when its output is asked for."""
    name, first = call.names.get(id(weight), ""), is_raw(x)
    sources = (weight, bias)
    weight, bias = constant(weight), constant(bias)
    rule = call.selection.rule_for(kind, name, first=first)
    layer = Affine(
        function,
        x,
        weight,
        bias,
        kind,
        name,
        first,
        sources,
        call.cache,
        output_dim,
        adjoint,
        geometry,
    )
    if isinstance(rule, WeightRule):
        rule.check(layer)
    elif adjoint is None:
        z = function(x, weight, bias if bias is None else call.booked(bias))
        return put_trace(z, Trace(pending=PendingRule(rule, None, call.ledger)))
    with torch.no_grad():
        z = function(x, weight, bias).data  # where it is a view, e.g. of a dense layer in 3 dims
    return _pending(z, rule, layer, call.ledger)


def _pending(z: Tensor, rule: Rule, layer: Affine, ledger: Ledger | None) -> Tensor:
    """Return a layer's output with its rule pending; a gradient rule needs a graph at once."""
    if isinstance(rule, GradientRule):
        weight, bias = layer.weight, layer.bias
        if layer.scale is not None:
            weight, bias = layer.made("merged", lambda weight, bias: (weight, bias))
        z = layer.passing(z, [Flow(Weights(weight), bias=bias)], ledger)
    return put_trace(z, Trace(pending=PendingRule(rule, layer, ledger)))


@dataclass
class PendingRule:
    """The rule of an affine operator, until it is known what takes the operator's output.

    It does not hold the output itself, which holds it: such a ring would keep the memory of a
    pass until the garbage collector runs.

    Attributes:
        rule: The rule.
        layer: The operator, for a rule that sends relevance through modified weights.
        ledger: The books, if they are kept.
    """

    rule: Rule
    layer: Affine | None
    ledger: Ledger | None
    _known: Tensor | None = None
    _known_version: int = -1

    def resolve(self, z: Tensor) -> Tensor:
        """Return the output ``z`` with the rule applied; the same tensor to every taker."""
        if isinstance(self.rule, GradientRule) and not self.rule.applies(z.dtype):
            return z
        if self._known is None:
            self._known = put_trace(self._apply(z), Trace())
            self._known_version = self._known._version
        return self._known

    def rectify(self, z: Tensor, *, in_place: bool) -> Tensor | None:
        """Return ``relu(z)``, where that and the rule can be had in one; else None."""
        if not isinstance(self.rule, WeightRule) or self._known is not None:
            return None
        assert self.layer is not None
        with torch.no_grad():
            value = z.relu_() if in_place else z.relu()
        return self.rule.propagate(self.layer, value, self.ledger, rectified=True)

    @property
    def is_changed(self) -> bool:
        """Whether a taker has overwritten the output in place."""
        return self._known is not None and self._known._version != self._known_version

    def _apply(self, z: Tensor) -> Tensor:
        if isinstance(self.rule, WeightRule):
            assert self.layer is not None
            # Another tensor of the same memory: z itself stays pending, for a batch normalisation
            # that takes it, too.
            return self.rule.propagate(self.layer, z.data, self.ledger, rectified=False)
        assert isinstance(self.rule, GradientRule)
        return self.rule.attach(z, self.ledger)


def resolved(value: Any) -> Any:
    """Return a tensor with its pending rule applied; anything else as it is."""
    pending = _pending_rule(value)
    return value if pending is None else pending.resolve(value)


def relu(call: Call) -> Tensor:
    """A ReLU: the plain gradient; where it alone takes a layer's output, one with its rule."""
    x: Tensor = call.argument(0, "input")
    in_place = call.in_place or bool(call.argument(1, "inplace", default=False))
    pending = _pending_rule(x)
    result = None if pending is None else pending.rectify(x, in_place=in_place)
    if result is not None:
        return result
    x = resolved(x)
    if call.is_lean(x) and not x._is_view():  # autograd rewrites no view in place by our function
        return lean.relu(x, in_place=in_place)
    return x.relu_() if in_place else x.relu()


def is_overwritten(value: Any) -> bool:
    """Say whether a layer's output was overwritten in place, which its stabilized copy shows."""
    pending = _pending_rule(value)
    return pending is not None and pending.is_changed


def present(value: Tensor) -> Tensor:
    """Return what a tensor holds now, after an in-place operator has worked on its copy."""
    return resolved(value) if is_overwritten(value) else value


def batch_norm(call: Call) -> Tensor:
    """Batch normalisation by running statistics: a scale and a shift a channel.

    Right after a convolution the two are one affine layer, and the convolution's rule
    applies to their joint output, as if the normalisation had been merged into it.
    """
    order = ("running_mean", "running_var", "weight", "bias")
    if call.function is torch.batch_norm:
        order = ("weight", "bias", "running_mean", "running_var")
    x: Tensor = call.argument(0, "input")
    given = {name: call.argument(i, name) for i, name in enumerate(order, 1)}
    mean, variance = given["running_mean"], given["running_var"]
    weight, bias = given["weight"], given["bias"]
    if call.argument(5, "training", default=False) or mean is None or variance is None:
        raise RefusalError(
            "it normalises by the statistics of the batch, so one image's relevance would depend "
            "on the others; put the model in eval mode and track running statistics."
        )
    eps = float(call.argument(7, "eps", 1e-5))
    name = call.names.get(id(weight), "")
    mean, variance, weight, bias = (constant(v) for v in (mean, variance, weight, bias))
    scale, shift = call.cache.get(
        ("scale and shift", eps),
        tuple(given.values()),
        partial(_scale_and_shift_of, mean, variance, weight, bias, eps),
    )
    run = partial(
        F.batch_norm, running_mean=mean, running_var=variance, weight=weight, bias=bias, eps=eps
    )
    before = _pending_rule(x)
    if before is not None and before.layer is not None:
        sources = (given["running_mean"], given["running_var"], given["weight"], given["bias"])
        merged = before.layer.merged(scale, shift, eps, sources)
        if merged is not None:
            with torch.no_grad():
                z = run(x)
            return _pending(z, before.rule, merged, call.ledger)
    if before is not None and before.layer is None:
        rule = before.rule
    else:
        x = resolved(x)
        rule = call.selection.rule_for("normalization", name, first=is_raw(x))
    shape = (1, -1) + (1,) * (x.ndim - 2)
    scale, shift = scale.view(shape), shift.view(shape)
    if isinstance(rule, WeightRule):
        with torch.no_grad():
            z = run(x)
        layer = Affine(
            _scale_and_shift,
            x,
            scale,
            shift,
            "normalization",
            name,
            is_raw(x),
            tuple(given.values()),
            call.cache,
            None,
            _scale_adjoint,
        )
        return _pending(z, rule, layer, call.ledger)
    z = x * scale + call.ledger.leaf(shift) if call.ledger else _BatchNorm.apply(x, run, scale)
    return put_trace(z, Trace(pending=PendingRule(rule, None, call.ledger)))


def _scale_and_shift_of(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift of each channel [C] that a batch normalisation is."""
    scale = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
    return scale, -mean * scale if bias is None else bias - mean * scale


def _scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    return _plus(x * scale, shift)


def _scale_adjoint(c: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    return c * scale


def _pending_rule(value: Any) -> PendingRule | None:
    trace = trace_of(value)
    if trace is None or trace.version != value._version:  # overwritten through a view
        return None
    return trace.pending if isinstance(trace.pending, PendingRule) else None


class _BatchNorm(torch.autograd.Function):
    """The library's forward, and a backward that needs the scale alone, not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor], scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return (gradients[0] * scale).to(gradients[0].dtype), None, None
