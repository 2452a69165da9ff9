"""The one exception a user is meant to read."""

from collections.abc import Sequence

from dcamt.escape import printable

_LONGEST = 1000


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence: which file or option, what is wrong with it, what to do. The
    command line prints it without a traceback and exits with code 2. Names in it may come from a
    stranger's file: what cannot be printed is escaped, and the middle of what is endless left out.
    """

    def __init__(self, message: str):
        line = printable(message)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST * 2 // 3]} ... {line[-_LONGEST // 3 :]}"
        super().__init__(line)


def first_of(problems: Sequence[str]) -> InputError:
    """The error to raise for several problems: the first of them, and how many there are."""
    more = f" ({len(problems)} such problems in all)" if problems[1:] else ""
    return InputError(problems[0] + more)


class Unwritable(InputError):
    """A file cannot be written: the disk is full, or the folder is not ours."""


class CannotHold(InputError):
    """The format of a file to be written cannot hold the place of the volume in space."""
