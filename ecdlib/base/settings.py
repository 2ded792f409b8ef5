"""Settings of a task: typed, with limits, units and presets, and one clear line for what is not allowed.

Each class of settings stands beside the code that obeys it; a notebook that runs the task takes the same class,
or one that only changes defaults, where the task would take minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from ecdlib.base.errors import EcdError

if TYPE_CHECKING:
    from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
else:
    try:
        from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
    except ModuleNotFoundError:
        from ecdlib.base.unchecked import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

__all__ = ["AfterValidator", "BeforeValidator", "Field", "Parameters", "Profile", "Size", "Subset"]

Profile = Literal["tiny", "quick", "full"]


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("must be odd, with r = 0 in the centre")
    return size


def _subset(crystals: int) -> int:
    if 0 < crystals < 60:
        raise ValueError("is too few to train and test on: use 0 for all, or at least 60")
    return crystals


#: Voxels along each axis of a grid with r = 0 in its centre.
Size = Annotated[int, AfterValidator(_odd)]
#: Crystals that a task is restricted to; 0 are all.
Subset = Annotated[int, AfterValidator(_subset)]


class Parameters(BaseModel):
    """Base of all settings. The defaults are the ``quick`` preset; ``full`` holds what the papers' settings change,
    ``tiny`` what makes a run fit into the tests (its results mean nothing)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    full: ClassVar[dict[str, Any]] = {}
    tiny: ClassVar[dict[str, Any]] = {}

    profile: Profile = Field("quick", description="profile that these values started from")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where torch models run")
    seed: int = Field(0, ge=0, description="random seed")

    @classmethod
    def checked(cls, given: Mapping[str, Any], profile: Profile = "quick", source: object = "parameters") -> Self:
        """The preset of ``profile``, overridden by ``given`` (text is converted to its type).

        Args:
            source: what the error names: a notebook, or the file that the values come from.

        Raises:
            EcdError: an unknown name, or a value of the wrong type or out of range.
        """
        preset = {"profile": profile} | {"full": cls.full, "tiny": cls.tiny}.get(profile, {})
        try:
            return cls(**{**preset, **given})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                problem, remedy = f"unknown parameter '{name}'", f"Parameters are: {', '.join(cls.model_fields)}."
            else:
                field = cls.model_fields[name]
                problem = f"parameter {name} = {first['input']!r}: {first['msg'].removeprefix('Value error, ')}"
                remedy = f"It means: {field.description} (default {field.default!r})."
            raise EcdError(source, problem, remedy) from error

    def confirm(self, stored: Mapping[str, Any], file: object) -> None:
        """Refuse to take a finished file for a result of these settings if it was made with others.

        Raises:
            EcdError: the file was made with other settings.
        """
        if type(self).checked(stored, source=file) != self:
            raise EcdError(file, "was made with other parameters", "Remove it, or choose another name with --out.")
