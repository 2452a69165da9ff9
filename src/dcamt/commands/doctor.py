"""``dcamt doctor``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dcamt.processes import safe_path

if TYPE_CHECKING:
    from dcamt.runs.doctor import Finding


def doctor() -> "Iterator[Finding]":
    """Show versions, processor, memory, GPU and cache, and check that the arithmetic is right.

    Gives each finding as soon as it is made.
    """
    with safe_path():  # not `command`: what is examined is imported between the findings
        from dcamt.runs.doctor import examine

        yield from examine()
