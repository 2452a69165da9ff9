"""``python -m dcamt``: the command line."""

from dcamt.cli import main

main()
