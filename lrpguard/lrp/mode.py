"""The TorchFunctionMode that gives each operator its relevance rule.

A mode is thread-local and needs no hooks on the model, so any number of threads may
explain one model at a time, and nothing has to be undone after an exception.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from lrpguard.errors import UnsupportedOperatorError
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.operators import (
    ESCAPES,
    HANDLERS,
    OWN_FUNCTIONS,
    Call,
    RefusalError,
    carries,
    mark,
    plain_name,
    tensors,
)
from lrpguard.lrp.rules import Rule


class LrpMode(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
    """Run a model under a relevance rule.

    Args:
        model: The model that will run; used to name the module in an error.
        rule: Rule of the affine operators.
        ledger: Where absorbed relevance is booked, None to keep no books.
    """

    def __init__(self, model: nn.Module, rule: Rule, ledger: Ledger | None = None) -> None:
        super().__init__()
        self._model = model
        self._rule = rule
        self._ledger = ledger

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator by its rule; refuse one without."""
        kwargs = kwargs or {}
        if not any(carries(t) for t in tensors((args, kwargs))):
            return func(*args, **kwargs)
        name = plain_name(func)
        handler = HANDLERS.get(name)
        if handler is None:
            return self._without_rule(name, func, args, kwargs)
        try:
            return mark(handler(Call(func, args, kwargs, self._rule, self._ledger)))
        except RefusalError as refusal:
            raise self._error(func, str(refusal)) from None

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
