"""A user without a name, as containers have them: libraries ask for it when they are loaded."""

import getpass
import os


def name_the_nameless() -> None:
    """Give a user whom the system does not know a name, in this process's environment."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = "user"
