"""Whether a file holds what dcamt writes there."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dcamt.errors import InputError

Record = TypeVar("Record")


def checked(content: dict[str, Any], kind: TypeAdapter[Record], path: Path) -> Record:
    """``content`` as it stands in the file ``path``, if it is of that ``kind``; else InputError.

    The kind is a typed dictionary. Keys that it does not name stay, where it allows them.
    """
    try:
        kind.validate_python(content)
    except ValidationError:
        raise broken(path) from None
    return content  # type: ignore[return-value]  # just checked


def broken(path: Path) -> InputError:
    """The error to raise for a file whose content cannot be dcamt's."""
    return InputError(
        f"{path}: lacks keys or holds values that dcamt does not write there; restore it, or "
        "remove it and make it anew"
    )
