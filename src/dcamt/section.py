"""What every part of a configuration is made of, and how values become one."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcamt.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]

_LONGEST_SHOWN = 100


class Section(BaseModel):
    """Frozen, and closed to unknown keys and to numbers that are not finite."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=BaseModel)


def validated(section: type[AnySection], values: Any, source: str) -> AnySection:
    """``values`` as a ``section``; InputError names the key, its fault and the known keys."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = _shown(".".join(map(str, first["loc"])) or "the configuration").strip("'\"")
        if first["type"] == "extra_forbidden":
            known = ", ".join(_fields_beside(section, first["loc"]))
            raise InputError(f"{source}: unknown key '{key}'; known keys there: {known}") from None
        if first["type"] == "missing":
            raise InputError(f"{source}: {key} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        raise InputError(f"{source}: {key} = {_shown(first['input'])}: {message}") from None


def _shown(value: Any) -> str:
    """A value of the user's as one short line."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _fields_beside(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location[:-1]:
        field = section.model_fields.get(str(part))
        kinds = (
            [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        )
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if inner:
            section = inner[0]
    return sorted(section.model_fields)
