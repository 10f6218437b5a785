"""What the engine knows of a tensor on the relevance path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

_ATTRIBUTE = "_lrpguard_trace"


class Pending(Protocol):
    """A rule not applied yet: a batch normalisation that follows is merged first."""

    def resolve(self, z: Tensor) -> Tensor:
        """Return the tensor ``z`` with its rule applied."""


@dataclass(frozen=True)
class Entry:
    """The network's input, for the rules that are made for it.

    Attributes:
        direct: Zero leaf of the input's shape whose gradient is relevance, not ``c``, for rules
            whose relevance is not proportional to the input (flat, w-square, z-box).
        low: Lowest value an input pixel can take, broadcastable to the input.
        high: Highest value.
    """

    direct: Tensor
    low: Tensor
    high: Tensor


@dataclass
class Trace:
    """Kept on a tensor that depends on the input whose relevance is sought.

    Attributes:
        raw: No affine operator lies between the input and this tensor.
        nonnegative: No value was below zero when the trace was put.
        entry: On the network's input alone.
        gate: Name of the operator that made this coefficient, ``""`` for an activation. A gate
            (an attention weight, a squeeze-excite factor, a standard deviation) depends on the
            input but passes no relevance; it may only multiply activations.
        origin: Operator and module that made the gate.
        pending: The rule of the operator that made the tensor, where it is not applied yet.
        version: The tensor's version counter when the trace was put.
    """

    raw: bool = False
    nonnegative: bool = False
    entry: Entry | None = None
    gate: str = ""
    origin: tuple[str, str] = ("", "")
    pending: Pending | None = None
    version: int = -1


def trace_of(value: Any) -> Trace | None:
    """Return the trace of a tensor on the relevance path, None for anything else."""
    return getattr(value, _ATTRIBUTE, None) if isinstance(value, Tensor) else None


def carries(value: Any) -> bool:
    """Say whether a value is an activation: it depends on the input and passes relevance."""
    trace = trace_of(value)
    return trace is not None and not trace.gate


def is_gate(value: Any) -> bool:
    """Say whether a value is a gate: it depends on the input and passes no relevance."""
    trace = trace_of(value)
    return trace is not None and bool(trace.gate)


def put_gate(value: Any, name: str, origin: tuple[str, str] = ("", "")) -> Any:
    """Cut the floating-point tensors in an operator's result off the graph, as gates."""

    def cut(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return put_trace(
            tensor.detach() if tensor.requires_grad else tensor, Trace(gate=name, origin=origin)
        )

    return substitute(value, cut)


def put_trace(tensor: Tensor, trace: Trace) -> Tensor:
    """Put a trace on a tensor, with the tensor's present version."""
    trace.version = tensor._version
    setattr(tensor, _ATTRIBUTE, trace)
    return tensor


def is_nonnegative(tensor: Tensor) -> bool:
    """Say whether a tensor is known to hold no value below zero."""
    trace = trace_of(tensor)
    return trace is not None and trace.nonnegative and trace.version == tensor._version


def is_raw(tensor: Tensor) -> bool:
    """Say whether no affine operator lies between the input and a tensor."""
    trace = trace_of(tensor)
    return trace is not None and trace.raw


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dicts."""
    found: list[Tensor] = []
    _gather(value, found)
    return found


def _gather(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _gather(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _gather(item, found)


def substitute(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested tuples, lists and dicts with ``change`` applied to each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [substitute(item, change) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, dict):
        return {name: substitute(item, change) for name, item in value.items()}
    return value
