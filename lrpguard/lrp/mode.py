"""The TorchFunctionMode that gives each operator its relevance rule.

A mode is thread-local and needs no hooks on the model, so any number of threads may
explain one model at a time, and nothing has to be undone after an exception.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from lrpguard.errors import UnsupportedOperatorError
from lrpguard.lrp.calls import Call, plain_name
from lrpguard.lrp.composites import Composite
from lrpguard.lrp.layers import OWN_FUNCTIONS, resolved
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.operators import (
    CONSTANT_MAKING,
    ESCAPES,
    GATE_TAKING,
    HANDLERS,
    OWN_TRACE,
    RECTIFYING,
    SIGN_KEEPING,
)
from lrpguard.lrp.rules import RefusalError
from lrpguard.lrp.trace import (
    Trace,
    carries,
    is_gate,
    is_nonnegative,
    is_raw,
    put_gate,
    put_trace,
    substitute,
    tensors,
    trace_of,
)


class LrpMode(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
    """Run a model under a composite.

    Args:
        model: The model that will run; its parameters and modules are named in rules and errors.
        composite: Which rule for which layer.
        ledger: Where absorbed relevance is booked, None to keep no books.
    """

    def __init__(
        self, model: nn.Module, composite: Composite, ledger: Ledger | None = None
    ) -> None:
        super().__init__()
        self._model = model
        self._composite = composite
        self._ledger = ledger
        self._names = {id(p): n.rpartition(".")[0] for n, p in model.named_parameters()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator by its rule; refuse one without."""
        kwargs = kwargs or {}
        taken = list(tensors((args, kwargs)))
        gates = [t for t in taken if is_gate(t)]
        name = plain_name(func)
        if name in CONSTANT_MAKING:
            return func(*args, **kwargs)
        if not any(carries(t) for t in taken):
            return self._of_gates(name, func, args, kwargs) if gates else func(*args, **kwargs)
        if gates and name not in GATE_TAKING:
            trace = trace_of(gates[0])
            made = trace.gate if trace is not None else ""
            raise self._error(
                func,
                f"it takes the result of {made} as an activation, but lrpguard has no LRP rule for "
                f"{made} except as a factor of activations.",
            )
        handler = HANDLERS.get(name)
        if handler is None:
            return self._without_rule(name, func, args, kwargs)
        try:
            if name != "batch_norm":  # which takes a pending convolution as it is
                resolve = partial(resolved, before_relu=name == "relu")
                args, kwargs = substitute(args, resolve), substitute(kwargs, resolve)
            call = Call(func, args, kwargs, self._composite, self._ledger, self._names)
            result = handler(call)
        except RefusalError as refusal:
            raise self._error(func, str(refusal)) from None
        return result if name in OWN_TRACE else _trace(result, name, args, kwargs)

    def _of_gates(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute a gate from gates and constants."""
        if name in ESCAPES and name not in ("detach", "data"):
            raise self._error(func, "a value that depends on the input leaves the graph here.")
        with torch.no_grad():
            return put_gate(func(*args, **kwargs), name)

    def _without_rule(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Let shapes, comparisons and indices pass; refuse everything that makes numbers."""
        if name in ESCAPES:
            raise self._error(
                func, "a value leaves the graph here, and its relevance would be lost unseen."
            )
        result = func(*args, **kwargs)
        made_numbers = any(t.is_floating_point() or t.is_complex() for t in tensors(result))
        if made_numbers or result is None:
            raise self._error(func, "lrpguard has no LRP rule for this operator yet.")
        return result

    def _error(self, func: Callable[..., Any], detail: str) -> UnsupportedOperatorError:
        operator = resolve_name(func) or plain_name(func)
        return UnsupportedOperatorError(operator, _calling_module(self._model), detail)


def _trace(result: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Put a trace on every differentiable tensor in an operator's result."""
    sources = [t for t in tensors((args, kwargs)) if t.is_floating_point()]
    nonnegative = name in RECTIFYING or (
        name in SIGN_KEEPING and all(is_nonnegative(t) for t in sources)
    )
    raw = all(is_raw(t) for t in sources if carries(t))
    for tensor in tensors(result):
        if tensor.requires_grad:
            put_trace(tensor, Trace(raw=raw, nonnegative=nonnegative))
    return result


def reject_custom_functions(model: nn.Module, logits: Tensor) -> None:
    """Refuse a graph that holds a user's ``torch.autograd.Function``.

    Such a function is invisible to the mode: its own backward would be taken for a rule.

    Raises:
        UnsupportedOperatorError: Naming the function.
    """
    seen: set[Any] = set()
    queue = [logits.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # Nodes of Python functions are instances of a class made from the user's own.
        custom = hasattr(type(node), "_forward_cls")
        if custom and node.name() not in OWN_FUNCTIONS:
            raise UnsupportedOperatorError(
                node.name().removesuffix("Backward"),
                "",
                "it is a torch.autograd.Function, which hides what it computes. "
                "Write it with ordinary operators.",
            )
        queue.extend(parent for parent, _ in node.next_functions)


def _calling_module(model: nn.Module) -> str:
    """Return the name of the innermost module of ``model`` on the Python stack."""
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            return str(names[id(owner)])
        frame = frame.f_back
    return ""
