"""Do the methods still train to the same weights, to the last bit, as at another commit?

    python tests/same_weights.py COMMIT
    python tests/same_weights.py COMMIT --dataset FOLDER --config recipes/hippocampus.yaml

Trains every method for a few iterations twice, with the code of COMMIT and with the code here, on
the CPU, in float32, on one thread, and compares the last checkpoints tensor by tensor, optimisers
included. Without a data set it draws phantoms. Exits 1 if any weight differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHANTOMS = ("network.width=4", "data.patch=[32,32,32]")
SHARED = ("train.precision=32-true", "train.validate_every=0", "device=cpu")


def main() -> int:
    """Compare; 0 if all weights are the same."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", nargs="?", help="what to compare with")
    parser.add_argument("--dataset", type=Path, help="a data set folder; default drawn phantoms")
    parser.add_argument("--config", type=Path, help="a recipe")
    parser.add_argument("--methods", help="names with commas; default all at COMMIT")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.train, given)
        return 0
    if not given.commit:
        parser.error("name a commit to compare with")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        old = scratch / "old"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", old, given.commit],
                       cwd=ROOT, check=True)  # fmt: skip
        try:
            before, after = (digests(tree, scratch, given) for tree in (old, ROOT))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", old], cwd=ROOT, check=True)
    for method, weights in before.items():
        print(f"{method:14}", told(weights, after.get(method, {})))
    return int(before != {method: after.get(method) for method in before})


def told(before: dict[str, str], after: dict[str, str]) -> str:
    """How two checkpoints compare, in a few words."""
    other = [name for name in before.keys() & after.keys() if before[name] != after[name]]
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    if not (other or gone or new):
        return f"the same {len(before)} tensors"
    return f"{len(other)} tensors differ, {len(gone)} are gone, {len(new)} are new"


def digests(tree: Path, scratch: Path, given: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Method to tensor to digest, as the code in ``tree`` trains them."""
    out = scratch / f"runs-{tree.name}"
    command = [sys.executable, "-P", __file__, "--train", out, "--iterations", given.iterations]
    for option in ("dataset", "config", "methods"):
        value = getattr(given, option)
        if value is not None:
            command += [f"--{option}", value if option == "methods" else value.resolve()]
    cache = {"DCAMT_CACHE": str(scratch / f"cache-{tree.name}"), "OMP_NUM_THREADS": "1"}
    environment = os.environ | cache | {"PYTHONPATH": str(tree / "src")}
    subprocess.run([str(part) for part in command], env=environment, check=True, cwd=scratch)
    found: dict[str, dict[str, str]] = json.loads((out / "digests.json").read_text())
    return found


def train(out: Path, given: argparse.Namespace) -> None:
    """Train every method into ``out`` and write the digests of their weights there."""
    from safetensors import safe_open  # noqa: PLC0415

    import dcamt  # noqa: PLC0415
    from dcamt.data.phantom import write_phantoms  # noqa: PLC0415
    from dcamt.methods import METHODS  # noqa: PLC0415

    dataset, settings = given.dataset, SHARED
    if dataset is None:
        dataset, settings = out / "phantoms", (*SHARED, *PHANTOMS)
        write_phantoms(dataset, 8, labeled=3, val=1, seed=7)
    splits = dataset / "splits.json"
    found = {}
    for method in given.methods.split(",") if given.methods else METHODS:
        run = dcamt.train(
            dataset, out / method, method=method, iterations=given.iterations, set=settings,
            config=given.config, splits=splits if splits.exists() else None, quiet=True,
        )  # fmt: skip
        with safe_open(run / "last.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name).contiguous() for name in sorted(file.keys())}
        found[method] = {
            name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
            for name, value in tensors.items()
        }
        print(f"{dcamt.__file__}: {method}", file=sys.stderr, flush=True)
    (out / "digests.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
