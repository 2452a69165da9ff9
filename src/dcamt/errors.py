"""The one exception a user is meant to read."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence: which file or option, what is wrong with it, what to do. The
    command line prints it without a traceback and exits with code 2.
    """
