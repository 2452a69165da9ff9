"""``dcamt report``."""

from pathlib import Path

from dcamt.commands.options import Run, command


@command
def report(run: Run) -> Path:
    """Write RUN/report.html anew: curves, tables, pictures, configuration.

    Returns its path. Raises InputError if ``run`` is no run folder.
    """
    from dcamt.reporting.report import write_report

    return write_report(Path(run))
