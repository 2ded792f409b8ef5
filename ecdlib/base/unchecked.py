"""Settings where pydantic is not installed: the values as given, which another machine has checked.

What :mod:`ecdlib.base.settings` takes of pydantic, and no more: names, defaults, inheritance; no types, no limits.
"""

from __future__ import annotations

from typing import Any, ClassVar

ValidationError: Any = ()  # none is raised


def Field(default: Any, **_: Any) -> Any:
    """The default."""
    return default


def AfterValidator(_: Any) -> None:
    """No check."""


BeforeValidator = AfterValidator
ConfigDict = dict


class BaseModel:
    """Named values, frozen by agreement."""

    model_fields: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = {n: vars(cls)[n] for n, kind in cls.__annotations__.items() if not str(kind).startswith("ClassVar")}
        cls.model_fields = cls.model_fields | own

    def __init__(self, **values: Any):
        if unknown := set(values) - set(self.model_fields):
            raise TypeError(f"unknown parameters: {', '.join(sorted(unknown))}")
        self.__dict__.update(self.model_fields | values)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """All values by name."""
        return {name: getattr(self, name) for name in self.model_fields}
