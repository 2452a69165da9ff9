"""Imported before all else by the command line: no module is taken from the current folder.

A user may stand in a data set that a stranger made, and `python -m` looks for modules there first.
Uses only what Python has loaded before any program begins.
"""

import os
import sys


def _forget_current_folder() -> None:
    """Take the folder the user stands in off the path, unless dcamt itself lies there."""
    try:
        here = os.path.realpath(os.curdir)
        if here != os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir)):
            sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder) != here]
    except OSError:  # the folder is gone
        pass


_forget_current_folder()
