"""Damaged, hostile and random inputs for every reader: `make fuzz`.

    python tests/fuzzing.py --inputs 10000 --seed 0

Whatever a file holds, a reader either reads it or raises InputError: one line that repeats nothing
from inside a scan or a checkpoint. Every input is made anew from the seed, the reader's name and
its number, from a good file (real volumes, where DCAMT_TEST_DATA names a folder of them) or from
nothing. Readers work in child processes with a limit on memory and on time; a child that dies is
a failure of the input it was given. Exit code 1 if there is any.
"""

import argparse
import copy
import gzip
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
import torch
import yaml
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from dcamt import api
from dcamt.config import load_config
from dcamt.data.dataset import Case, read_dataset
from dcamt.data.phantom import write_phantoms
from dcamt.data.prepare import prepare
from dcamt.data.split import choose_split
from dcamt.data.volume import read_image, read_label, write_volume
from dcamt.engine import checkpoint
from dcamt.engine.trainer import make_optimizers
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import evaluate
from dcamt.inference.predict import predict_case
from dcamt.inference.predictor import make_predictor
from dcamt.records.finished_run import read_run
from dcamt.runs.build import build_method, load_run, resolve_method
from dcamt.runs.card import model_card
from dcamt.runs.resume import reopen

MEMORY = 1 << 30
"""Bytes that reading a small file may take beyond what the process holds."""
SECONDS = 20
SECRET = "Quixwold"
"""Stands inside scans and checkpoints, and must never be shown."""
LONGEST_MESSAGE = 1500
SETTINGS = (
    "device=cpu",
    "network.width=1",
    "data.patch=[16,16,16]",
    "train.iterations=1",
    "train.labeled_batch=2",
    "train.unlabeled_batch=2",
    "method.name=vnet",
)

Mutate = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Reader:
    """``read`` is called after ``file`` has been replaced by an input made from ``seeds``."""

    name: str
    file: Path
    seeds: Sequence[bytes] = field(repr=False)
    mutate: Mutate
    read: Callable[[], object]
    share: int = 1  # of the inputs, against the other readers'


# --------------------------------------------------------------------------------------- readers


def make_files(place: Path) -> None:
    """A data set and a run, the good files of most readers."""
    data = place / "data"
    write_phantoms(data, 5, (20, 18, 16), seed=3, labeled=2, val=1)
    splits = data / "splits.json"
    api.train(data, place / "run", splits=splits, set=SETTINGS, quiet=True)


def readers(place: Path, real: Path | None = None) -> list[Reader]:
    """Every reader, with files in ``place`` beside those made; ``real`` holds volumes."""
    data, run = place / "data", place / "run"
    config = load_config(run / "config.yaml")
    dataset = read_dataset(data)
    assert config.plan is not None
    plan = config.plan

    def a_copy(source: Path, name: str) -> Path:
        return Path(shutil.copytree(source, place / name, dirs_exist_ok=True))

    found = volume_readers(place, real)
    other = a_copy(data, "described")
    file = other / "dataset.json"

    def describe() -> None:
        read_dataset(other)
        evaluate(other / "labelsTr" / "phantom_000.nii.gz", other)

    found.append(Reader("dataset.json", file, [file.read_bytes()], json_mutation, describe, 2))

    file = place / "splits.json"
    found.append(
        Reader(
            "splits.json", file, [(data / "splits.json").read_bytes()], json_mutation,
            lambda: choose_split(dataset, place / "splits.json", None, 0, 0.2), 2,
        )
    )  # fmt: skip

    recipe = place / "recipe.yaml"
    recipes = [
        (run / "config.yaml").read_bytes(),
        b"train:\n  iterations: 5\nmethod: {name: bcp}\n",
    ]
    found.append(
        Reader("YAML recipe", recipe, recipes, yaml_mutation,
               lambda: resolve_method(load_config(recipe).method), 2)
    )  # fmt: skip

    weights = place / "last.safetensors"
    method = build_method(config)
    optimizers = make_optimizers(method, config.train)
    good = (run / "last.safetensors").read_bytes()
    found.append(
        Reader("checkpoint", weights, [good], safetensors_mutation,
               lambda: checkpoint.load(weights, method, optimizers), 3)
    )  # fmt: skip

    for name, change in {
        "config.yaml": yaml_mutation, "split.json": json_mutation, "versions.json": json_mutation,
        "validation.json": json_mutation, "log.csv": partial(byte_mutation, header=80),
    }.items():  # fmt: skip
        folder = a_copy(run, f"run with {name}")

        def look(folder: Path = folder) -> None:
            read_run(folder)
            model_card([folder])
            reopen(folder)

        seeds = [(run / name).read_bytes()]
        found.append(Reader(f"run folder, {name}", folder / name, seeds, change, look))

    strange = a_copy(run, "strange run")
    scan = data / "imagesTr" / "phantom_000.nii.gz"

    def segment() -> None:
        config, method = load_run(strange)
        assert config.plan is not None
        predictor = make_predictor(method, config.plan, torch.device("cpu"))
        predict_case(predictor, config, [scan], place / "out" / "x.nii.gz")

    file = strange / "config.yaml"
    found.append(
        Reader("predict with config.yaml", file, [file.read_bytes()], yaml_mutation, segment)
    )

    case = Case("cached", (scan,), None)
    entry = prepare([case], plan)[0].image_path
    expected = np.array(prepare([case], plan)[0].image)

    def from_cache() -> None:
        again = prepare([case], plan)[0]
        assert np.array_equal(again.image, expected)

    change = partial(byte_mutation, header=128)
    found.append(Reader("cache entry", entry, [entry.read_bytes()], change, from_cache))
    return found


def volume_readers(place: Path, real: Path | None) -> list[Reader]:
    """A reader of images and one of labels for every format."""
    found = []
    for ending, share in VOLUMES.items():
        path = place / "volumes" / f"scan{ending}"
        seeds = [*drawn_volumes(ending, path.parent), *real_volumes(real, ending)]
        change = zipped_mutation if ending.endswith(".gz") else partial(byte_mutation, header=400)
        found += [
            Reader(f"image {ending}", path, seeds, change, partial(read_image, [path]), share),
            Reader(f"label {ending}", path, seeds, change, partial(read_label, path), share),
        ]
    series = place / "series"
    slices = drawn_series(series)
    change = partial(byte_mutation, header=1200)
    read = partial(read_image, [series])
    found.append(Reader("DICOM slice", series / "1.dcm", slices[1:2], change, read, 3))
    return found


VOLUMES = {
    ".nii": 3, ".nii.gz": 3, ".nrrd": 2, ".nhdr": 2, ".mha": 2, ".mhd": 2, ".h5": 3,
}  # fmt: skip
"""Endings of the formats that are fuzzed, and their share of the inputs."""
AFFINE = np.array([[-1.5, 0, 0, 3], [0, 1, 0, -8], [0, 0, 2, 4], [0, 0, 0, 1]])


def drawn_volumes(ending: str, folder: Path) -> list[bytes]:
    """Small good files of a format, as bytes; text in NIfTI headers is SECRET.

    The data of detached headers are left in ``folder``, where the inputs will be.
    """
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 3, (6, 5, 4)).astype(np.int16),
        rng.normal(size=(5, 4, 3)).astype(np.float32),
    ]
    if ending.startswith(".nii"):
        arrays.append(rng.integers(0, 255, (4, 4, 3, 2)).astype(np.uint8))
        images = [_nifti(array) for array in arrays]
        return [gzip.compress(i, 1) if ending.endswith(".gz") else i for i in images]
    if ending in (".nhdr", ".mhd"):
        image = SimpleITK.GetImageFromArray(arrays[0].T)
        SimpleITK.WriteImage(image, str(folder / f"scan{ending}"))
        return [(folder / f"scan{ending}").read_bytes()]
    path, files = folder / f"drawn{ending}", []
    for array in arrays:
        write_volume(path, array, AFFINE)
        files.append(path.read_bytes())
    return files


def _nifti(array: np.ndarray[Any, Any]) -> bytes:
    image = nib.Nifti1Image(array, AFFINE)
    image.header["descrip"] = SECRET.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    if array.dtype == np.int16:
        image.header.set_slope_inter(2, 1)
    content: bytes = image.to_bytes()
    return content


def drawn_series(folder: Path) -> list[bytes]:
    """Three slices of a DICOM series whose headers hold SECRET; returns their bytes."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    study = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    for k in range(3):
        head = pydicom.Dataset()
        head.file_meta = FileMetaDataset()
        head.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        head.file_meta.MediaStorageSOPClassUID = head.SOPClassUID = MRImageStorage
        head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        values = {
            **study, "PatientName": SECRET, "PatientID": SECRET, "SeriesDescription": SECRET,
            "Modality": "MR", "InstanceNumber": k + 1, "SeriesNumber": 1, "Rows": 5, "Columns": 6,
            "ImagePositionPatient": [0, 0, 2 * k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [1, 1.5], "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 16,
            "PhotometricInterpretation": "MONOCHROME2", "HighBit": 15, "PixelRepresentation": 1,
        }  # fmt: skip
        for name, value in values.items():
            setattr(head, name, value)
        head.PixelData = rng.integers(0, 99, (5, 6)).astype("<i2").tobytes()
        pydicom.dcmwrite(folder / f"{k}.dcm", head, enforce_file_format=True)
    return [(folder / f"{k}.dcm").read_bytes() for k in range(3)]


def real_volumes(real: Path | None, ending: str) -> list[bytes]:
    """Small volumes below ``real``."""
    if real is None:
        return []
    paths = sorted(p for p in real.rglob(f"*{ending}") if p.stat().st_size < 1 << 17)
    return [path.read_bytes() for path in paths[:6]]


# ------------------------------------------------------------------------------------- mutations

ODD_BYTES = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\0\0\xc0\x7f",
    b"\0\0\x80\x7f",
    b"\xff" * 8,
    b"9" * 12,
    b"-1",
    b"../x",
    b"/dev/zero",
    struct.pack("<8h", 7, *[32767] * 7),
    struct.pack("<8h", 3, 16, -1, 1, 1, 1, 1, 1),
    b"\n",
    b"'",
    b"\xe2\x80\xae",
]


def byte_mutation(rng: random.Random, good: bytes, header: int) -> bytes:
    """One to six changes of bytes, mostly among the first ``header``."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 6)):
        end = min(header, len(data)) if rng.random() < 0.7 else len(data)
        at, kind = rng.randrange(end + 1), rng.randrange(7)
        if kind <= 2:
            odd = rng.choice(ODD_BYTES)
            data[at : at + len(odd)] = odd
        elif kind == 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 4:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.randint(1, 40))
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def zipped_mutation(rng: random.Random, good: bytes) -> bytes:
    """Changes of the compressed bytes, or of what they hold."""
    if rng.random() < 0.4:
        return byte_mutation(rng, good, header=30)
    changed = byte_mutation(rng, gzip.decompress(good), header=400)
    return zlib.compress(changed, 1) if rng.random() < 0.1 else gzip.compress(changed, 1)


ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**18,
    10**400,
    1e-300,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "../x",
    "/etc/passwd",
    "a\nb",
    "x" * 3000,
    "\0",
    "\ud800",
    "nan",
    "1e5",
    [],
    {},
    [[]],
    [1, "a"],
    {"a": 1},
    [1e9, 1e9, 1e9],
    [10**6] * 3,
    [-16, 16, 16],
    [0, 0, 0],
    {"../x": 0, "b": 1},
    {"background": 0, "a": 10**30},
    {"0": "a", "00": "b"},
    {"²": "a"},
]


def odd_value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(ODD_VALUES))


def value_mutation(rng: random.Random, value: Any) -> Any:
    """One place in a tree of mappings and lists replaced, removed, doubled or renamed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return odd_value(rng)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, kind = rng.choice(keys), rng.randrange(8)
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(value, dict):
        value[rng.choice(["", "x", "../x", "\n", "__class__"])] = value[key]
    elif kind == 2 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = value_mutation(rng, value[key])
    return value


def json_mutation(rng: random.Random, good: bytes) -> bytes:
    if rng.random() < 0.3:
        return byte_mutation(rng, good, header=len(good))
    if rng.random() < 0.1:
        nest = rng.choice(["[", '{"a":', "[1,"])
        return nest.encode() * rng.choice([10, 1000, 200_000])
    value = json.loads(good)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = value_mutation(rng, value)
    return json.dumps(value).encode()


YAML_TRICKS = [
    b"!!python/object/apply:os.system ['touch /tmp/dcamt-was-here']\n",
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\n"
    b"f: [*e,*e,*e,*e,*e,*e,*e]\n",
    b"&a [*a]\n",
    b"a: &a {b: *a}\n",
    b"? [1, 2]\n: 3\n",
    b"1: 2\n",
    b"seed: " + b"9" * 6000 + b"\n",
    b"seed: " + b":".join([b"59"] * 5000) + b"\n",
    b"seed: 2001-99-99\n",
    b"seed: !!binary x\n",
    b"seed: !!int x\n",
    b"train: !!set {a, b}\n",
    b"[" * 5000,
    b"- " * 5000,
    b"%YAML 9.9\n---\na: 1\n",
    b"a: 1\n---\nb: 2\n",
    b"<<: {a: 1}\n",
    b"seed: !!float '.'\n",
    b"seed: !!timestamp '2'\n",
    b"\0",
    b"seed: 0x" + b"f" * 9000 + b"\n",
    b"seed: 0b\n",
    b"seed: !!bool maybe\n",
    b"? !!null\n: !!null\n",
]


def yaml_mutation(rng: random.Random, good: bytes) -> bytes:
    draw = rng.random()
    if draw < 0.15:
        return rng.choice([b"", good]) + rng.choice(YAML_TRICKS)
    if draw < 0.35:
        return byte_mutation(rng, good, header=len(good))
    value = yaml.safe_load(good)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = value_mutation(rng, value)
    # JSON is YAML, and can say what a YAML writer refuses to.
    return json.dumps(value).encode() if rng.random() < 0.5 else yaml.dump(value).encode()


def safetensors_mutation(rng: random.Random, good: bytes) -> bytes:
    draw = rng.random()
    if draw < 0.3:
        return byte_mutation(rng, good, header=16)
    length = int.from_bytes(good[:8], "little")
    header, tensors = json.loads(good[8 : 8 + length]), good[8 + length :]
    if draw < 0.5:
        state = header["__metadata__"]
        state["state"] = json_mutation(rng, state["state"].encode()).decode("utf-8", "replace")
    elif draw < 0.6:
        name = rng.choice(
            [f"{SECRET}^A", f"optimizer/all/{SECRET}", "optimizer/all/99999/x", "../x"]
        )
        header[name] = header.pop(rng.choice([n for n in header if n != "__metadata__"]))
    else:
        for _ in range(rng.choice([1, 1, 2])):
            header = value_mutation(rng, header)
            if not isinstance(header, dict):
                break
    text = json.dumps(header).encode()
    claimed = rng.choice([2**63, 2**32, 10**8, 0]) if rng.random() < 0.05 else len(text)
    return claimed.to_bytes(8, "little") + text + tensors


# --------------------------------------------------------------------------------------- running


def make_input(reader: Reader, seed: int, number: int) -> bytes:
    rng = random.Random(f"{seed} {reader.name} {number}")
    if rng.random() < 0.03:
        return rng.randbytes(rng.choice([0, 1, 8, 348, 400, 2000]))
    return reader.mutate(rng, rng.choice(reader.seeds))


def try_input(reader: Reader, content: bytes) -> str:
    """What came of reading ``content``: "read", "refused", or what went wrong."""
    reader.file.unlink(missing_ok=True)
    reader.file.write_bytes(content)
    try:
        reader.read()
    except InputError as error:
        return _fault_of(str(error), reader) or "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "read"


def _fault_of(message: str, reader: Reader) -> str | None:
    if "\n" in message or len(message) > LONGEST_MESSAGE:
        return f"no sentence: {message[:300]!r}"
    if SECRET in message:
        return f"tells what the file holds: {message[:300]}"
    if "does not fit into memory" in message:
        return f"tried to take memory: {message[:300]}"
    return None


class TooLong(BaseException):
    pass


def _give_up(*_: object) -> None:
    raise TooLong


def work(place: Path, real: Path | None, name: str, seed: int, tasks: Any, results: Any) -> None:
    """A child process: try the numbers that come, and tell what came of each."""
    torch.set_num_threads(1)
    reader = next(r for r in readers(place, real) if r.name == name)
    held = int(re.search(r"VmSize:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY,) * 2)
    signal.signal(signal.SIGALRM, _give_up)
    results.put(("ready", ""))
    while (number := tasks.get()) is not None:
        signal.alarm(SECONDS)
        try:
            outcome = try_input(reader, make_input(reader, seed, number))
        except TooLong:
            outcome = f"took more than {SECONDS} s"
        signal.alarm(0)
        results.put((number, outcome))


def fuzz(
    place: Path, real: Path | None, name: str, seed: int, numbers: Sequence[int]
) -> Counter[str]:
    """Try inputs of one reader in children, a fresh one after each that died."""
    context = multiprocessing.get_context("spawn")
    outcomes: Counter[str] = Counter()
    left = list(numbers)
    while left:
        tasks, results = context.Queue(), context.Queue()
        child = context.Process(target=work, args=(place, real, name, seed, tasks, results))
        child.start()
        while results.empty():
            if not child.is_alive():
                raise SystemExit(f"{name}: the child could not begin")
            time.sleep(0.05)
        results.get()
        while left:
            tasks.put(left[0])
            begin = time.monotonic()
            while results.empty() and child.is_alive() and time.monotonic() < begin + 3 * SECONDS:
                time.sleep(0.0005)
            outcome = "killed its process" if results.empty() else results.get()[1]
            outcomes[outcome if outcome in ("read", "refused") else "failed"] += 1
            if outcome not in ("read", "refused"):
                print(f"  {name}, seed {seed}, number {left[0]}: {outcome}", flush=True)
            left.pop(0)
            if outcome == "killed its process":
                break
        tasks.put(None)
        child.join(5)
        child.kill()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", help="this one only")
    parser.add_argument("--number", type=int, help="this input of it only")
    options = parser.parse_args()
    folder = os.environ.get("DCAMT_TEST_DATA")
    real = Path(folder) if folder and Path(folder).is_dir() else None
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        os.environ["DCAMT_CACHE"] = str(place / "cache")
        make_files(place)
        everyone = [(r.name, r.share) for r in readers(place, real)]
        chosen = [(n, s) for n, s in everyone if options.reader in (None, n)]
        total = sum(share for _, share in chosen)
        source = "drawn and real files" if real else "drawn files (DCAMT_TEST_DATA is not set)"
        print(f"{source}\n| reader | inputs | read | refused | failed |\n|---|---|---|---|---|")
        sums: Counter[str] = Counter()
        for name, share in chosen:
            count = -(-options.inputs * share // total)
            numbers = range(count) if options.number is None else [options.number]
            found = fuzz(place, real, name, options.seed, numbers)
            sums += found
            print(_row(name, found), flush=True)
        print(_row("all", sums))
    sys.exit(1 if sums["failed"] else 0)


def _row(name: str, found: Counter[str]) -> str:
    cells = [found.total(), *(found[what] for what in ("read", "refused", "failed"))]
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
