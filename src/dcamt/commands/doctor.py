"""``dcamt doctor``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dcamt.commands.options import command

if TYPE_CHECKING:
    from dcamt.runs.doctor import Finding


@command
def doctor() -> "Iterator[Finding]":
    """Tell versions, processor, memory, GPU and cache, and check that the arithmetic is right.

    Gives each finding as soon as it is made.
    """
    from dcamt.runs.doctor import examine

    return examine()
