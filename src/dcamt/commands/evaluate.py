"""``dcamt evaluate``."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcamt.commands.options import PathLike, command, optional_path, with_commas
from dcamt.errors import InputError

if TYPE_CHECKING:
    from dcamt.records.scores import Scores


@command
def evaluate(
    predictions: Annotated[PathLike, typer.Argument(help="Folder of segmentations.")],
    labels: Annotated[PathLike, typer.Argument(help="Folder of labels, or a data set.")],
    out: Annotated[PathLike | None, typer.Option(help="JSON file to write.")] = None,
    *,
    unit: Annotated[Literal["mm", "voxels"], typer.Option(help="Unit of the distances.")] = "mm",
    metrics: Annotated[
        str | Iterable[str],
        typer.Option(help="NAME,...; also assd, hd, hd95_max and nsd (surface Dice)."),
    ] = "dice,jaccard,hd95,asd",
    tolerance: Annotated[
        float, typer.Option(help="Distance within which nsd counts surfaces as equal.")
    ] = 1.0,
) -> "Scores":
    """Dice, Jaccard, 95HD and ASD, or others, per case and class, as JSON and a table.

    Compares ``predictions`` (a folder of segmentations) with ``labels``. ``metrics`` are keys of
    docs/metrics.md, as a list or as ``"dice,nsd"``; ``tolerance`` is that of ``nsd``, in ``unit``.
    Returns the result and, if ``out`` is given, writes it there as JSON. Raises InputError for
    what cannot be compared, and if ``out`` exists and holds no scores.
    """
    from dcamt.data.outputs import refuse_within_dataset
    from dcamt.evaluation.evaluate import evaluate as compare_folders
    from dcamt.files import write_json

    names = [name.strip() for name in with_commas(metrics).split(",")]
    labels, out = Path(labels), optional_path(out)
    if out is not None:
        refuse_within_dataset(out, labels)
        if out.exists() and not _is_scores(out):
            raise InputError(f"{out}: exists already and holds no scores; choose another --out")
    result = compare_folders(Path(predictions), labels, unit, names, tolerance)
    if out is not None:
        write_json(result, out)
    return result


def _is_scores(path: Path) -> bool:
    from dcamt.files import read_json

    try:
        return read_json(path).keys() >= {"cases", "mean", "per_class", "unit"}
    except InputError:
        return False
