"""The TorchFunctionMode that gives each operator its relevance rule.

A mode is thread-local and needs no hooks on the model, so any number of threads may
explain one model at a time, and nothing has to be undone after an exception.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from lrpguard.errors import UnsupportedOperatorError
from lrpguard.lrp.calls import Call, plain_name
from lrpguard.lrp.composites import Composite, Selection
from lrpguard.lrp.layers import is_overwritten, present, resolved
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.operators import (
    CASTING,
    CONSTANT_MAKING,
    ESCAPES,
    GATE_TAKING,
    HANDLERS,
    LIKE,
    OWN_TRACE,
    UNRESOLVED,
    makes_nonnegative,
)
from lrpguard.lrp.rules import RefusalError
from lrpguard.lrp.trace import (
    Trace,
    carries,
    is_gate,
    is_raw,
    put_gate,
    put_trace,
    substitute,
    tensors,
    trace_of,
)
from lrpguard.lrp.weights import WeightCache

_UNSEEN = (
    "its input reached it through code that lrpguard cannot look into (a torch.autograd.Function, "
    "a scripted function, a checkpoint). Write it with ordinary operators."
)


class LrpMode(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
    """Run a model under a composite.

    Args:
        model: The model that will run; its parameters and modules are named in rules and errors.
        composite: Which rule for which layer.
        ledger: Where absorbed relevance is booked, None to keep no books.
        cache: Where modified weights are kept from pass to pass, None to make them anew.
        lean: Whether to keep bits for the backward in place of activations; None where it pays.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        ledger: Ledger | None = None,
        cache: WeightCache | None = None,
        lean: bool | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self.selection = Selection(composite)
        self._ledger = ledger
        self._cache = WeightCache() if cache is None else cache
        self._lean = lean
        self._entry: Any = None
        self._blind: set[Any] = set()
        self._modules: dict[int, str] = {}
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
        taken = tensors((args, kwargs))
        if any(is_overwritten(t) for t in taken):
            args, kwargs = substitute(args, present), substitute(kwargs, present)
            taken = tensors((args, kwargs))
        gates = [t for t in taken if is_gate(t)]
        name = plain_name(func)
        self._refuse_unseen(taken)
        if _is_constant(name, args, kwargs):
            return func(*args, **kwargs)
        if not any(carries(t) for t in taken):
            return self._of_gates(name, func, args, kwargs) if gates else func(*args, **kwargs)
        if not torch.is_grad_enabled():
            raise self._error(
                func,
                "it runs without gradients (torch.no_grad, or inside a torch.autograd.Function), "
                "so its relevance would be lost unseen.",
            )
        if gates and name not in GATE_TAKING:
            raise _gate_as_activation(gates[0], f"by {_operator(func)}")
        handler = HANDLERS.get(name)
        if handler is None:
            return self._without_rule(name, func, args, kwargs)
        try:
            if name not in UNRESOLVED:
                args, kwargs = substitute(args, resolved), substitute(kwargs, resolved)
            call = Call(
                func,
                args,
                kwargs,
                self.selection,
                self._ledger,
                self._names,
                self._cache,
                self._lean,
            )
            result = handler(call)
            if name not in OWN_TRACE:
                return _trace(result, name, call)
            self._sign_gates(result, func)
            return result
        except RefusalError as refusal:
            raise self._error(func, str(refusal)) from None

    def begin(self, entry: Tensor) -> None:
        """Say which tensor the network takes, before it runs."""
        self._entry = entry.grad_fn

    def end(self, logits: Tensor) -> Tensor:
        """Return the network's output with its rule applied.

        Raises:
            UnsupportedOperatorError: The output comes from code that the mode cannot see.
        """
        self._refuse_unseen([logits])
        if is_gate(logits):
            raise _gate_as_activation(logits, "as the logits")
        result: Tensor = resolved(present(logits))
        return result

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Leave the mode; name the scripted code that hides a refusal in an error of its own.

        Raises:
            UnsupportedOperatorError: The TorchScript interpreter failed under the mode.
        """
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if isinstance(error, RuntimeError) and "TorchScript interpreter" in str(error):
            raise UnsupportedOperatorError("torch.jit.script", "", _UNSEEN) from error

    def _refuse_unseen(self, taken: list[Tensor]) -> None:
        """Refuse tensors that depend on the input by ways that the mode has not seen.

        A torch.autograd.Function, a scripted function or a checkpoint is invisible to the
        mode: what it does to relevance is unknown.
        """
        for tensor in taken:
            if tensor.grad_fn is None or trace_of(tensor) is not None:
                continue
            if self._depends_on_entry(tensor.grad_fn):
                name = tensor.grad_fn.name().removesuffix("Backward").removesuffix("Backward0")
                raise UnsupportedOperatorError(
                    name,
                    self._calling_module(),
                    _UNSEEN,
                )

    def _depends_on_entry(self, node: Any) -> bool:
        queue, seen = [node], set()
        while queue:
            node = queue.pop()
            if node is None or node in seen or node in self._blind:
                continue
            if node is self._entry:
                return True
            seen.add(node)
            queue.extend(parent for parent, _ in node.next_functions)
        self._blind |= seen
        return False

    def _of_gates(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute a gate from gates and constants."""
        if name in ESCAPES and name not in ("detach", "data"):
            raise self._error(func, "a value leaves the graph here, and would be lost unseen.")
        first = next(t for t in tensors((args, kwargs)) if is_gate(t))
        with torch.no_grad():
            return put_gate(func(*args, **kwargs), name, _gate_trace(first).origin)

    def _sign_gates(self, result: Any, func: Callable[..., Any]) -> None:
        """Note on new gates what made them, for an error later."""
        for tensor in tensors(result):
            if is_gate(tensor) and not _gate_trace(tensor).origin[0]:
                _gate_trace(tensor).origin = (_operator(func), self._calling_module())

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
        return UnsupportedOperatorError(_operator(func), self._calling_module(), detail)

    def _calling_module(self) -> str:
        """Return the name of the innermost module of the model on the Python stack."""
        if not self._modules:
            self._modules = {id(m): name for name, m in self._model.named_modules()}
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in self._modules:
                return self._modules[id(owner)]
            frame = frame.f_back
        return ""


def _trace(result: Any, name: str, call: Call) -> Any:
    """Put a trace on every differentiable tensor in an operator's result."""
    nonnegative = makes_nonnegative(name, call)
    raw = all(is_raw(t) for t in tensors((call.args, call.kwargs)) if carries(t))
    for tensor in tensors(result):
        if name in CASTING and not tensor.is_floating_point():
            raise RefusalError(f"it casts an activation to {tensor.dtype}, which has no gradient.")
        if tensor.requires_grad:
            put_trace(tensor, Trace(raw=raw, nonnegative=nonnegative))
        elif tensor.is_floating_point():
            raise RefusalError("its result has no gradient, so its relevance would be lost unseen.")
    return result


def _is_constant(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Say whether an operator reads no value of an activation or a gate."""
    if name in LIKE:
        return trace_of(args[0]) is None
    others = (args[1:], {key: value for key, value in kwargs.items() if key != "input"})
    return name in CONSTANT_MAKING and all(trace_of(t) is None for t in tensors(others))


def _operator(func: Callable[..., Any]) -> str:
    return resolve_name(func) or plain_name(func)


def _gate_trace(gate: Tensor) -> Trace:
    trace = trace_of(gate)
    assert trace is not None
    return trace


def _gate_as_activation(gate: Tensor, where: str) -> UnsupportedOperatorError:
    operator, module = _gate_trace(gate).origin
    return UnsupportedOperatorError(
        operator,
        module,
        f"its result is used as an activation {where}; it depends on the input, and lrpguard has "
        "an LRP rule for it only as a factor that multiplies activations.",
    )
