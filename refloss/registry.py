"""Every loss by name. A loss registers itself where it is defined: see refloss.loss.loss.

refloss's own live each in a module of its name, in refloss.losses or refloss.heads; they are imported when somebody
asks for all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from refloss.homes import homes

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.specification import Specification


class Function(NamedTuple):
    """A public function and its facts."""

    name: str
    call: Callable[..., Any]
    specification: Specification

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.call.__doc__ or "").partition("\n")[0]

    @property
    def required(self) -> tuple[str, ...]:
        """The arrays that have to be given."""
        return self.specification.required

    @property
    def optional(self) -> tuple[str, ...]:
        """The arrays that may be left out."""
        return self.specification.optional

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The arrays that have gradients."""
        return self.specification.differentiable

    @property
    def nested(self) -> tuple[str, ...]:
        """Arguments that are lists of arrays, or of mappings to arrays."""
        return self.specification.nested

    @property
    def listed(self) -> tuple[str, ...]:
        """Arguments that may be lists of arrays in the place of one array."""
        return self.specification.listed

    @property
    def parameters(self) -> dict[str, type]:
        """The other arguments of the command line by their types, but for the keywords that every loss takes."""
        parameters = self.specification.parameters.items()
        return {name: parameter.kind for name, parameter in parameters if parameter.on_command_line}


_registered: dict[str, Function] = {}


def register(function: Function) -> None:
    """Make a loss known by its name; a second one of that name is an error, unless its module was loaded again."""
    other = _registered.get(function.name)
    if other is not None and other.call.__module__ != function.call.__module__:
        raise ValueError(f"{function.call.__module__}: there is a loss {function.name!r} in {other.call.__module__}")
    _registered[function.name] = function


class _Functions(Mapping[str, Function]):
    """refloss's own losses, and those that others have registered, in the order that their specifications say."""

    def _all(self) -> dict[str, Function]:
        for name, module in homes().items():
            if name not in _registered:
                importlib.import_module(module)
        names = sorted(_registered, key=lambda name: (_registered[name].specification.order, name))
        return {name: _registered[name] for name in names}

    def __getitem__(self, name: str) -> Function:
        if name not in _registered and name in homes():
            importlib.import_module(homes()[name])
        return _registered[name]

    def __contains__(self, name: object) -> bool:
        return name in _registered or name in homes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


FUNCTIONS: Mapping[str, Function] = _Functions()
