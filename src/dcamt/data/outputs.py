"""Where nothing may be written: among the files that a data set is read from."""

from pathlib import Path

from dcamt.data.folder import LITERATURE
from dcamt.errors import InputError

READ = (
    *("images", "imagesTr", "imagesUn", "imagesTs", "labels", "labelsTr", "labelsTs"),
    *("dataset.json", "splits.json", "splits_final.json"),
)
"""Names in a data set's own folder by which its files are found; beside them anything may lie."""


def refuse_within_dataset(out: Path, dataset: Path | None = None) -> None:
    """InputError if ``out`` would lie among the files of ``dataset``, or of any other data set."""
    place = out.resolve()
    roots = [path.parent for path in (place, *place.parents) if path.name in READ]
    roots = [root for root in roots if _is_dataset(root)]
    for root in roots if dataset is None else (*roots, dataset.resolve()):
        for name in READ:
            if place.is_relative_to((root / name).resolve()):
                raise InputError(
                    f"{out}: lies in {name} of the data set {root}, which is read from there; "
                    "choose another --out"
                )


def _is_dataset(folder: Path) -> bool:
    if (folder / "imagesTr").is_dir() or (folder / "images").is_dir():
        return True
    below = folder.iterdir() if folder.is_dir() else ()
    return any((path / LITERATURE).is_file() for path in below)
