"""``dcamt view``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from dcamt.commands.options import PathLike, command


@command
def view(
    paths: Annotated[
        Iterable[PathLike] | PathLike,
        typer.Argument(help="RUN..., COMPARISON, or SCAN and SEGMENTATION: files or folders."),
    ],
    *,
    ranking: Annotated[
        PathLike | None, typer.Option(help="ranking.csv: show the scans in its order.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port; default a free one.")] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, open nothing.")
    ] = False,
) -> None:
    """Look at scans and segmentations in a browser, in three planes and in 3D.

    ``paths`` are a run folder, also of a training that is still running; several run folders or a
    comparison, side by side; or a scan and its segmentation, or the folders of many. ``ranking`` is
    a table with a column ``case``, by which scans are sorted. Serves a page on 127.0.0.1 (``port``;
    0 takes a free one), prints its address, opens it unless ``no_browser``, and ends on Ctrl-C.
    Nothing beyond ``paths`` and the data set of a run is read, and nothing leaves the machine.
    Raises InputError if there is nothing to show, and Interrupted at the end.
    """
    from dcamt.commands.options import optional_path
    from dcamt.runs.view import view as show

    given = [paths] if isinstance(paths, str | Path) else list(paths)
    show([Path(path) for path in given], optional_path(ranking), not no_browser, port)
