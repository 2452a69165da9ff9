"""Which cases train with their label, which without it, and which validate."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from dcamt.data.classes import no_label
from dcamt.data.dataset import Dataset
from dcamt.data.folder import case_name
from dcamt.data.formats import file_stem
from dcamt.errors import InputError
from dcamt.files import parse_json

Labels = int | Literal["all", "none"] | None
"""How many labels to show; None for those that the split names."""
NUMBERED_FOLD = re.compile(r"(?P<file>.+):(?P<fold>\d{1,9})")
"""FILE:FOLD, a fold of nnU-Net's splits_final.json."""


@dataclass(frozen=True)
class Split:
    """Case names by use. Labels of `unlabeled` and whole cases of `test` stay unseen."""

    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()


def choose_split(
    dataset: Dataset,
    splits_file: Path | None,
    labeled: Labels,
    seed: int,
    val_fraction: float,
) -> Split:
    """Decide which cases train with their label, without it, or validate.

    With a splits file its lists are used, of nnU-Net's folds those of FILE:FOLD (else of fold 0);
    `labeled` = N then keeps the label of the first N of its labelled and unlabelled cases that
    have one, "all" every label there is, and "none" leaves no case but those, all unlabelled, with
    or without a label file. Without it, a share `val_fraction` of the labelled cases
    validates (at least one of five or more), and N of the others, drawn by `seed`, are labelled:
    more labels extend the same draw, and validation stays the same.
    Raises InputError for unusable files and counts.
    """
    number = isinstance(labeled, Integral) and not isinstance(labeled, bool) and labeled >= 1
    if labeled not in (None, "all", "none") and not number:
        raise InputError(
            f"labelled cases asked for: {labeled!r}; give a whole number of at least 1, or all"
        )
    if not 0 <= val_fraction < 1:
        raise InputError(f"the share of validation cases is {val_fraction}; give 0 <= share < 1")
    if labeled == "none":
        return _without_labels(dataset, splits_file, seed, val_fraction)
    if all(case.label is None for case in dataset.cases):
        raise InputError(no_label(dataset.root))
    if splits_file is None:
        count = None if labeled == "all" else labeled
        split = _draw_split(dataset, count, seed, val_fraction)
    else:
        split = _keep_first(dataset, _read_splits(dataset, splits_file), labeled)
    if not split.labeled:
        raise InputError(
            f"{splits_file or dataset.root}: no labelled case is left to train on; show the "
            "label of more, or take fewer cases for validation"
        )
    return split


def _without_labels(
    dataset: Dataset, splits_file: Path | None, seed: int, val_fraction: float
) -> Split:
    """The cases that train, all unlabelled; those that validate or test are left out."""
    if splits_file is None:
        split = _draw_split(dataset, None, seed, val_fraction)
    else:
        split = _read_splits(dataset, splits_file, needs_labels=False)
    training = {*split.labeled, *split.unlabeled} - {*split.val, *split.test}
    names = tuple(case.name for case in dataset.cases if case.name in training)
    if not names:
        raise InputError(f"{splits_file or dataset.root}: no case is left to train on")
    return Split((), names, ())


def hide_labels(dataset: Dataset, split: Split) -> Dataset:
    """The data set as training may see it.

    Cases of `unlabeled` lose their label's path; cases of `test`, and those that the split does
    not mention, are dropped.
    """
    keep = {*split.labeled, *split.val}
    seen = {*keep, *split.unlabeled}
    cases = (
        case if case.name in keep else replace(case, label=None)
        for case in dataset.cases
        if case.name in seen
    )
    return replace(dataset, cases=tuple(cases))


def _read_splits(dataset: Dataset, path: Path, needs_labels: bool = True) -> Split:
    """The lists of a splits file, checked against the data set."""
    numbered = None if path.exists() else NUMBERED_FOLD.fullmatch(str(path))
    file = Path(numbered["file"]) if numbered else path
    content = parse_json(file)
    if isinstance(content, list):
        fold = int(numbered["fold"]) if numbered else 0
        return _read_fold(dataset, file, content, fold, needs_labels)
    if numbered:
        raise InputError(f"{file}: holds no folds; leave out :{numbered['fold']}")
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold a JSON object {{...}} or nnU-Net's list of folds")
    allowed = [field.name for field in fields(Split)]
    wrong = [key for key in content if key not in allowed]
    wrong += [key for key in ("labeled", "unlabeled", "val") if key not in content]
    if wrong:
        raise InputError(
            f"{file}: {', '.join(map(repr, wrong))} is unknown or missing; a splits file has the "
            "lists labeled, unlabeled, val and, if wanted, test"
        )
    lists = {key: _case_names(file, key, names) for key, names in content.items()}
    _check_splits(dataset, file, lists, needs_labels)
    return Split(**lists)


def _read_fold(
    dataset: Dataset, path: Path, folds: list[Any], fold: int, needs_labels: bool
) -> Split:
    """One fold of nnU-Net's splits_final.json: a list of {"train": [...], "val": [...]}.

    nnU-Net knows no unlabelled cases; they are all those without a label.
    """
    if fold >= len(folds):
        raise InputError(f"{path}: has {len(folds)} folds, counted from 0; there is no fold {fold}")
    content = folds[fold]
    if not isinstance(content, dict) or not {"train", "val"} <= content.keys():
        raise InputError(
            f'{path}: fold {fold} must be {{"train": [...], "val": [...]}}, as in nnU-Net\'s '
            "splits_final.json"
        )
    lists = {key: _case_names(path, key, content[key]) for key in ("train", "val")}
    _check_splits(dataset, path, lists, needs_labels)
    unlabeled = tuple(case.name for case in dataset.cases if case.label is None)
    return Split(lists["train"], unlabeled, lists["val"])


def _case_names(path: Path, key: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {key!r} must be a list of case names; correct it")
    return tuple(case_name(file_stem(name) or name) for name in names)


def _check_splits(
    dataset: Dataset, path: Path, lists: dict[str, tuple[str, ...]], needs_labels: bool
) -> None:
    has_label = {case.name: case.label is not None for case in dataset.cases}
    names = [name for key in lists for name in lists[key]]
    unknown = [name for name in names if name not in has_label]
    if unknown:
        raise InputError(
            f"{path}: {_some(unknown)} not in {dataset.root}; correct the names, which are file "
            "names without channel number and ending"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: {_some(repeated)} listed more than once; list each case once")
    for key in ("labeled", "train", "val", "test") if needs_labels else ():
        bare = [name for name in lists.get(key, ()) if not has_label[name]]
        if bare:
            raise InputError(
                f"{path}: {_some(bare)} in {key!r} without a label file; add the labels, or "
                + ("take the cases out" if "train" in lists else "move the cases to 'unlabeled'")
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"


def _keep_first(dataset: Dataset, split: Split, labeled: int | Literal["all"] | None) -> Split:
    """Label the first `labeled` of the training cases in the order of the splits file."""
    if labeled is None:
        return split
    has_label = {case.name for case in dataset.cases if case.label is not None}
    training = split.labeled + split.unlabeled
    chosen = [name for name in training if name in has_label]
    if labeled != "all":
        _check_count(labeled, len(chosen))
        chosen = chosen[:labeled]
    rest = tuple(name for name in training if name not in chosen)
    return replace(split, labeled=tuple(chosen), unlabeled=rest)


def _draw_split(dataset: Dataset, labeled: int | None, seed: int, val_fraction: float) -> Split:
    names = [case.name for case in dataset.cases if case.label is not None]
    val_count = 0
    if len(names) >= 5 and val_fraction > 0:
        val_count = max(1, round(val_fraction * len(names)))
    random.Random(seed).shuffle(names)
    val, training = names[:val_count], names[val_count:]
    if labeled is not None:
        _check_count(labeled, len(training))
        training = training[:labeled]
    rest = {case.name for case in dataset.cases} - {*val, *training}
    return Split(tuple(sorted(training)), tuple(sorted(rest)), tuple(sorted(val)))


def _check_count(wanted: int, available: int) -> None:
    if wanted > available:
        raise InputError(
            f"labelled cases asked for: {wanted}, with a label and not used otherwise: "
            f"{available}; ask for fewer"
        )
