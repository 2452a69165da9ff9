"""Imported before all else by the command line: no module is taken from the current folder.

A user may stand in a data set that a stranger made, and `python -m` looks for modules there first.
Uses only what Python has loaded before any program begins.
"""

import os
import sys


def _forget_current_folder() -> None:
    """Take the folder the user stands in off the path, unless it is one of installed packages."""
    try:
        here = os.path.realpath(os.curdir)
        if here == os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir)):
            return
        pythons_own = os.path.dirname(os.__file__)  # installed packages come after it
        end = sys.path.index(pythons_own) if pythons_own in sys.path else len(sys.path)
        before = [folder for folder in sys.path[:end] if os.path.realpath(folder) != here]
        sys.path[:] = before + sys.path[end:]
    except OSError:  # the folder is gone
        pass


_forget_current_folder()
