"""``dcamt demo``: the whole way on drawn phantoms, through the same doors as real data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dcamt import api
from dcamt.data.outputs import refuse_within_dataset
from dcamt.data.phantom import write_phantoms
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import write_json

LABELED, UNLABELED, VALIDATION, NEW = 4, 28, 4, 16
# So short a training does not learn from mixed patches (docs/results.md).
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


def run_demo(out: Path) -> dict[str, Any]:
    """Draw a data set, train a V-Net and DCA-MT on its labels, segment new phantoms and compare.

    Both methods see the same labels for the same iterations; the new phantoms are drawn after
    another seed and take no part in training. Returns, and writes to ``out``/summary.json, the
    mean metrics of each method. Raises InputError if ``out`` holds anything.
    """
    refuse_within_dataset(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; remove it or choose another --out")
    console = Console(markup=False, emoji=False)
    dataset, new = out / "dataset", out / "new_scans"
    drawn = LABELED + UNLABELED + VALIDATION
    write_phantoms(dataset, drawn, labeled=LABELED, val=VALIDATION, seed=1)
    write_phantoms(new, NEW, labeled=1, val=1, seed=2)
    console.print(
        f"drew {LABELED} labelled, {UNLABELED} unlabelled, {VALIDATION} validation and {NEW} new "
        "phantoms"
    )
    scores = {}
    for method, options in METHODS.items():
        run = out / method
        console.rule(f"dcamt train {dataset} --method {method} --out {run}")
        settings = (*SETTINGS, *options)
        api.train(dataset, run, method=method, splits=dataset / "splits.json", set=settings)
        console.print(f"dcamt predict {run} {new} --out {run}/segmentations")
        api.predict(run, new, run / "segmentations", quiet=True)
        console.print(f"dcamt evaluate {run}/segmentations {new} --out {run}/scores.json")
        scores[method] = api.evaluate(run / "segmentations", new, run / "scores.json")["mean"]
    write_json(scores, out / "summary.json")
    console.print(_table(scores))
    better = scores["dca-mt"]["dice"] > scores["vnet"]["dice"]
    console.print(
        f"DCA-MT is {'ahead of' if better else 'NOT ahead of'} the V-Net trained on the same "
        f"{LABELED} labels; report: {out / 'dca-mt' / 'report.html'}"
    )
    return scores


def _table(scores: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = Table(title=f"{NEW} new phantoms, mean over cases")
    for heading in ("method", "Dice (%)", "Jaccard (%)", "95HD (mm)", "ASD (mm)"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    scales = {"dice": 100, "jaccard": 100, "hd95": 1, "asd": 1}
    for method, mean in scores.items():
        cells = (
            "none" if mean[name] is None else f"{scale * (mean[name] or 0):.2f}"
            for name, scale in scales.items()
        )
        table.add_row(method, *cells)
    return table
