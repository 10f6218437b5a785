"""One call of an operator under the mode, and its plain name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lrpguard.lrp.composites import Selection
from lrpguard.lrp.ledger import Ledger
from lrpguard.lrp.rules import RefusalError
from lrpguard.lrp.trace import carries, is_gate
from lrpguard.lrp.weights import WeightCache


@dataclass(frozen=True)
class Call:
    """One call of an operator under the mode."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    selection: Selection
    ledger: Ledger | None
    names: Mapping[int, str]
    cache: WeightCache
    lean: bool | None = None

    def run(self) -> Any:
        """Run the operator as it was called."""
        return self.function(*self.args, **self.kwargs)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def is_lean(self, x: Tensor) -> bool:
        """Say whether the backward of an operator on x should keep as little as it can.

        It does so on a GPU, where memory bounds the chunk; on a CPU packing the bits costs more
        time than it spares (docs/performance.md).
        """
        return x.device.type != "cpu" if self.lean is None else self.lean

    @property
    def in_place(self) -> bool:
        """Whether the operator overwrites its first operand, by its name."""
        name: str = getattr(self.function, "__name__", "")
        return name in _IN_PLACE_DUNDERS or (name.endswith("_") and not name.endswith("__"))

    def booked(self, bias: Tensor) -> Tensor:
        """Return a constant that adds to activations, as a leaf of the books if they are kept."""
        return self.ledger.leaf(bias) if self.ledger else bias


_IN_PLACE_DUNDERS = frozenset(("__iadd__", "__idiv__", "__imul__", "__isub__", "__itruediv__"))

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


def constant(value: Any) -> Any:
    """Return a weight cut off from the graph, so that no weight gradient is prepared."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def require_constant(value: Any, what: str) -> None:
    """Refuse a weight or factor that depends on the input.

    Raises:
        RefusalError: Naming it.
    """
    if carries(value) or is_gate(value):
        raise RefusalError(
            f"its {what} depends on the input, so it is a product of two activations."
        )
