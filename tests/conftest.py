"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: the tensors are tiny

TINY = (
    "device=cpu",
    "network.width=2",
    "data.patch=[16,16,16]",
    "train.iterations=3",
    "train.labeled_batch=2",
    "train.unlabeled_batch=2",
    "train.checkpoint_every=1",
    "train.validate_every=0",
    "method.heads=1",
    "method.head_size=4",
)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real volumes; tests that need it skip where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DCAMT_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("real volumes are absent: set DCAMT_TEST_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared volumes go here, never to the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCAMT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms of about 20 x 18 x 16 voxels: 2 labelled, 3 unlabelled, 1 validation.

    Read only: a test that changes files copies the folder first.
    """
    from dcamt.data.phantom import write_phantoms  # noqa: PLC0415

    root = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(root, 6, (20, 18, 16), seed=3, labeled=2, val=1)
    return root


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """``--set`` values of a training that takes a second or two."""
    return list(TINY)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, cache: Path) -> Path:
    """A finished DCA-MT run of three iterations on the phantoms; read only."""
    from dcamt import api  # noqa: PLC0415

    out = tmp_path_factory.mktemp("runs") / "tiny"
    return api.train(phantoms, out, splits=phantoms / "splits.json", set=TINY, quiet=True)
