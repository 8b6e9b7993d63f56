"""What every loss returns."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss import subnormals
from refloss.typing import Gradient, Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def one_nan(value: Any) -> Any:
    """A value in which every NaN has the same bits: which ones an operation on the host yields, processors choose."""
    if isinstance(value, np.floating):
        return value.dtype.type(np.nan) if math.isnan(value) else value
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fV":
        return value
    undefined = np.isnan(value)
    return np.where(undefined, value.dtype.type(np.nan), value) if np.count_nonzero(undefined) else value


class Intermediates(MutableMapping[str, Any]):
    """Intermediate values by name; those in ``later`` are computed when they are first asked for.

    Both kinds are among the keys. Looking for a name, listing names and printing compute nothing; ``[name]``, ``get``,
    ``pop``, ``values()``, ``items()`` and so ``dict(...)`` compute what they return. A copy, ``|`` and ``update`` keep
    what is computed later. A pickle does not have it and does not list it, but says so when it is asked for.

    Attributes:
        later: by name the functions that compute what is not there yet.
    """

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **later: Callable[[], Any]) -> None:
        self._computed: dict[str, Any] = {}
        self._lost: frozenset[str] = frozenset()  # what a pickle did not take along
        self.later: dict[str, Callable[[], Any]] = {}
        self.update(values)
        self.later.update(later)

    def computed(self) -> dict[str, Any]:
        """The values that are there."""
        return dict(self._computed)

    def renamed(self, prefix: str = "", suffix: str = "") -> Intermediates:
        """The same with a prefix or a suffix to every name; what is computed later is computed once for both."""
        renamed = Intermediates()
        renamed._computed = {f"{prefix}{name}{suffix}": value for name, value in self._computed.items()}
        renamed.later = {f"{prefix}{name}{suffix}": functools.partial(self.__getitem__, name) for name in self.later}
        return renamed

    def include(self, others: Intermediates) -> None:
        """Take over the values of others, computed or not."""
        for name in others.later:
            self._computed.pop(name, None)
        for name in others._computed:
            self.later.pop(name, None)
        self._computed.update(others._computed)
        self.later.update(others.later)
        self._lost = (self._lost | others._lost).difference(self)

    def update(self, values: Any = (), /, **named: Any) -> None:
        """As dict.update, but what others compute later is still computed later."""
        if isinstance(values, Intermediates):
            self.include(values)
            values = ()
        for name, value in dict(values, **named).items():
            self[name] = value

    def copy(self) -> Intermediates:
        """A copy; both compute for themselves what is computed later, from the same inputs."""
        return Intermediates(self)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Intermediates:
        copied = self.copy()
        copied._computed = copy.deepcopy(self._computed, memo)
        return copied

    def clear(self) -> None:
        """Remove every value, computed or not."""
        self._computed.clear()
        self.later.clear()

    def __getitem__(self, name: str) -> Any:
        if name in self._computed:
            return self._computed[name]
        if name in self.later:
            # Computed before it is taken off the list: where memory does not suffice, it can be asked for again.
            self[name] = subnormals.kept(self.later[name])
            return self._computed[name]
        if name in self._lost:
            raise KeyError(f"{name} is computed when it is asked for: a pickle lacks it unless that was before")
        raise KeyError(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._computed[name] = one_nan(value)
        self.later.pop(name, None)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._computed.pop(name, None)
        self.later.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._computed or name in self.later

    def __iter__(self) -> Iterator[str]:
        # Over names as they are now: to ask for a value moves its name.
        return iter(self._computed | self.later)

    def __len__(self) -> int:
        return len(self._computed | self.later)

    def __or__(self, others: Mapping[str, Any]) -> Intermediates:
        if not isinstance(others, Mapping):
            return NotImplemented
        both = self.copy()
        both.update(others)
        return both

    def __ror__(self, others: Mapping[str, Any]) -> Intermediates:
        return Intermediates(others) | self if isinstance(others, Mapping) else NotImplemented

    def __repr__(self) -> str:
        values = [f"{name!r}: {value!r}" for name, value in self._computed.items()]
        return f"{{{', '.join([*values, *(f'{name!r}: <computed when asked for>' for name in self.later)])}}}"

    def __getstate__(self) -> dict[str, Any]:
        return {"_computed": self._computed, "_lost": self._lost.union(self.later), "later": {}}


class Call(NamedTuple):
    """What was asked: a public function and its arguments, which are not copied."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def named(self) -> dict[str, Any]:
        """The arguments that were given, by name, those that the function ignores included."""
        signature = inspect.signature(self.function)
        named = signature.bind(*self.arguments, **self.keywords).arguments
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        return named


class Pairs(NamedTuple):
    """Predictions that are matched with objects, and what a sum over them is divided by."""

    table: np.ndarray  # [M, 3]: image, query, object
    num_boxes: float


class MatchedLayer(NamedTuple):
    """What a head that matches knows of one of its layers.

    Attributes:
        suffix: what the names of its components and intermediates end in.
        inputs: the arguments that it is made of, by what they hold: "logits", "pred_boxes", ...
        index: its part of those arguments.
        weights: of each of its components in the total, 0 for those that are not part of it.
        is_weighted: whether components are reported times their weights.
        pairs: its matching.
        of_boxes: what boxes and edges go by: the same, or the union of the matchings of all layers.
    """

    suffix: str
    inputs: Mapping[str, str]
    index: Any
    weights: Mapping[str, float]
    is_weighted: bool
    pairs: Pairs
    of_boxes: Pairs


@dataclass(frozen=True, eq=False)
class LossResult:
    """A loss, its gradients and what lies between.

    Attributes:
        loss: float64; an array for ``reduction="none"``.
        grads: for every differentiable input its vector-Jacobian product with ``grad_output``, in the input's shape and
            dtype, a list of such for an input that is a list of shards; empty with ``grad=False``.
        components: the parts of a composite loss under the names that transformers gives them.
        intermediates: intermediate values, for tensor-by-tensor debugging.
        layers: what a head that matches knows of its layers; empty for other losses.
        call: what was asked, so that a candidate can be judged. It keeps the arguments alive as long as the result; a
            copy or a pickle does not have it.
    """

    loss: Loss
    grads: dict[str, Gradient] = field(default_factory=dict)
    components: dict[str, Loss] = field(default_factory=dict)
    intermediates: Intermediates = field(default_factory=Intermediates)
    layers: tuple[MatchedLayer, ...] = field(default=(), repr=False)
    call: Call | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", one_nan(self.loss))
        object.__setattr__(self, "components", {name: one_nan(value) for name, value in self.components.items()})

    def __getstate__(self) -> dict[str, Any]:
        # A pickle that took the inputs along would be as large as they are.
        return {**self.__dict__, "call": None}
