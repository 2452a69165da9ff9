"""A console for names as they are."""

from rich.console import Console


def plain_console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console to which brackets and colons in names are just that."""
    return Console(
        stderr=stderr, quiet=quiet, soft_wrap=True, highlight=False, markup=False, emoji=False
    )
