"""The commands: their options, for Python and the command line alike.

A file for each (`ablate` is in compare.py), and options.py for what several share. Options are
parameters with an annotation: the type, and the help that the command line shows. The first
paragraph of a docstring is what the command line says of the command. Whatever is heavy is
imported when a command runs, so that `dcamt --help` is quick.
"""
