"""``dcamt demo``: the whole way on drawn phantoms, through the same doors as real data."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcamt.commands.evaluate import evaluate
from dcamt.commands.options import PathLike, command
from dcamt.commands.predict import predict
from dcamt.commands.train import train

if TYPE_CHECKING:
    from rich.table import Table

    from dcamt.records.scores import Metrics

LABELED, UNLABELED, VALIDATION, NEW = 4, 28, 4, 16
# So short a training does not learn from mixed patches (docs/tried.md).
METHODS = {"vnet": (), "dca-mt": ("method.paste=0",)}
SETTINGS = (
    "network.width=8",
    "train.iterations=500",
    "train.learning_rate=0.05",
    "train.validate_every=0",
    "train.augment.rotate=false",
    "train.augment.flip=[]",
    "data.patch=[32,32,32]",
)


@command
def demo(
    out: Annotated[PathLike, typer.Option(help="Folder to write to.")] = "demo",
) -> "dict[str, Metrics]":
    """Train DCA-MT and a V-Net on drawn phantoms, segment, evaluate and compare, in minutes.

    Both methods see the same labels for the same iterations; the new phantoms are drawn after
    another seed and take no part in training. Returns, and writes to ``out``/summary.json, the
    mean metrics of each method. Raises InputError if ``out`` holds anything.
    """
    from rich.console import Console

    from dcamt.data.outputs import refuse_within_dataset
    from dcamt.data.phantom import write_phantoms
    from dcamt.files import refuse_existing, write_json

    out = Path(out)
    refuse_within_dataset(out)
    refuse_existing(out, advice="remove it or choose another --out")
    console = Console(markup=False, emoji=False)
    dataset, new = out / "dataset", out / "new_scans"
    drawn = LABELED + UNLABELED + VALIDATION
    write_phantoms(dataset, drawn, labeled=LABELED, val=VALIDATION, seed=1)
    write_phantoms(new, NEW, labeled=1, val=1, seed=2)
    console.print(
        f"drew {LABELED} labelled, {UNLABELED} unlabelled, {VALIDATION} validation and {NEW} new "
        "phantoms"
    )
    scores: dict[str, Metrics] = {}
    for method, options in METHODS.items():
        run = out / method
        console.rule(f"dcamt train {dataset} --method {method} --out {run}")
        settings = (*SETTINGS, *options)
        train(dataset, run, method=method, splits=dataset / "splits.json", set=settings)
        console.print(f"dcamt predict {run} {new} --out {run}/segmentations")
        predict(run, new, run / "segmentations", quiet=True)
        console.print(f"dcamt evaluate {run}/segmentations {new} --out {run}/scores.json")
        scores[method] = evaluate(run / "segmentations", new, run / "scores.json")["mean"]
    write_json(scores, out / "summary.json")
    console.print(_table(scores))
    better = (scores["dca-mt"]["dice"] or 0) > (scores["vnet"]["dice"] or 0)
    console.print(
        f"DCA-MT is {'ahead of' if better else 'NOT ahead of'} the V-Net trained on the same "
        f"{LABELED} labels; report: {out / 'dca-mt' / 'report.html'}"
    )
    return scores


def _table(scores: "Mapping[str, Metrics]") -> "Table":
    from rich.table import Table

    from dcamt.evaluation.metrics import METRICS
    from dcamt.reporting.values import heading, shown

    table = Table(title=f"{NEW} new phantoms, mean over cases")
    table.add_column("method", justify="left")
    for metric in METRICS:
        table.add_column(heading(metric, "mm"), justify="right")
    for method, mean in scores.items():
        cells = ("none" if mean[m] is None else shown(mean[m], m) for m in METRICS)
        table.add_row(method, *cells)
    return table
