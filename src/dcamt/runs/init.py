"""``--init``: a training that does not start from random weights, and the record of what from."""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

import torch

from dcamt.data.split import Split
from dcamt.engine import checkpoint
from dcamt.engine.transfer import read_start
from dcamt.errors import InputError
from dcamt.files import read_json
from dcamt.records.run_folder import RunConfig, is_federation
from dcamt.runs.build import build_method
from dcamt.wording import number_of

WEIGHTS = "last.safetensors"
"""What is taken of a folder."""
KEY = "init"
"""In versions.json: name and digest of the file, never where it lay."""
_PART = re.compile(r"(?P<whole>.+)-\d+-of-\d+")
_SHOWN = 3


def find_weights(init: Path) -> Path:
    """The checkpoint that is meant: in a folder of train, pretrain or export, or a file.

    Of one in parts any part may be named. Raises InputError for what dcamt did not write.
    """
    path = init / WEIGHTS if init.is_dir() else init
    part = _PART.fullmatch(path.stem)
    if part:
        path = path.with_stem(part["whole"])
    checkpoint.weights_in(path)
    return path


def record_of(weights: Path) -> str:
    """What tells a checkpoint from any other: its name and the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    try:
        for part in checkpoint.files_of(weights):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise InputError(f"{weights}: cannot be read ({error.strerror})") from None
    return f"{weights.name} sha256:{digest.hexdigest()}"


def kept_record(run: Path) -> str | None:
    """The record in a run folder; None for a start from random weights."""
    path = run / "versions.json"
    record = read_json(path).get(KEY) if path.exists() else None
    return None if record is None else str(record)


def refuse_other_start(run: Path, record: str | None, strict: bool = False) -> None:
    """InputError if a run that was begun would go on from another start than its own.

    A run that has a checkpoint goes on from there. Its start need not be named again, so
    ``record`` may be None. With ``strict`` it must be named.
    """
    kept = kept_record(run)
    if _digest(kept) == _digest(record):
        return
    if record is None and (strict or not (run / WEIGHTS).exists()):
        raise InputError(f"{run}: was begun with --init ({kept}); give it again to go on")
    if record is not None:
        raise InputError(
            f"{run}: was begun {f'with --init ({kept})' if kept else 'without --init'}, not with "
            f"{record}; give what it was begun with, or another --out"
        )


def _digest(record: str | None) -> str | None:
    return record and record.rpartition(":")[2]


def told_of_start(weights: Path, config: RunConfig, split: Split) -> list[str]:
    """What a user should know of a start; InputError if nothing in ``weights`` fits."""
    with torch.device("meta"):
        method = build_method(config)
    start = read_start(weights, method)
    said = f"starts from {weights.name}: {number_of(len(start.weights), 'tensor')} taken"
    if start.left:
        names = ", ".join(start.left[:_SHOWN]) + (", ..." if start.left[_SHOWN:] else "")
        said += f", {len(start.left)} drawn at random ({names})"
    return [said, *_seen_before(weights, split)]


def _seen_before(weights: Path, split: Split) -> list[str]:
    """A warning where the weights were trained on cases that this run is judged by."""
    lists: list[object] = []
    with suppress(InputError):  # an exported folder has no split, and a lone file no folder
        kept = read_json(weights.parent / "split.json")
        if is_federation(weights.parent) and (split.val or split.test):
            return [
                f"warning: {weights.name} was trained by several sites, and names of cases stay "
                "there: check that no case of validation or test was among them"
            ]
        lists = [kept.get("labeled"), kept.get("unlabeled")]
    learnt = [name for names in lists if isinstance(names, list) for name in names]
    judged = [name for name in (*split.val, *split.test) if name in learnt]
    if not judged:
        return []
    return [
        f"warning: {number_of(len(judged), 'case')} of validation or test (such as {judged[0]}) "
        f"bear names that {weights.name} was trained on; if they are the same scans, their figures "
        "are too good: give the same --splits to both"
    ]
