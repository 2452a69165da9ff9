"""Where commands write: never over what is somebody else's, never among a data set's files."""

import hashlib
import json
import shutil

import h5py
import numpy as np
import pytest

from dcamt import api
from dcamt.data.outputs import refuse_within_dataset
from dcamt.errors import InputError


@pytest.fixture
def data(phantoms, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantoms, root)
    return root


def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------- its own kind only


@pytest.mark.parametrize(
    "text", ['{"labels": {"background": 0}}', '{"mean": {}, "cases": []}', "{}", "[]", "{", "hello"]
)
def test_scores_replace_nothing_but_scores(phantoms, tmp_path, text):
    out = tmp_path / "some.json"
    out.write_text(text)
    with pytest.raises(InputError, match=r"some\.json: exists already and holds no scores"):
        api.evaluate(phantoms / "labelsTr", phantoms, out)
    assert out.read_text() == text


def test_scores_replace_scores(phantoms, tmp_path):
    out = tmp_path / "scores.json"
    for unit in ("mm", "voxels"):
        api.evaluate(phantoms / "labelsTr", phantoms, out, unit=unit)
        assert json.loads(out.read_text())["unit"] == unit


@pytest.mark.parametrize("name", ["dataset.json", "splits.json", "labelsTr/scores.json"])
def test_scores_are_not_written_into_a_data_set(data, name):
    before = content(data)
    with pytest.raises(InputError, match="of the data set"):
        api.evaluate(data / "labelsTr", data, data / name)
    assert content(data) == before


def test_a_report_replaces_only_a_report(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    api.report(run)
    (run / "report.html").write_text("<title>my notes</title>")
    with pytest.raises(InputError, match=r"report\.html: exists already"):
        api.report(run)
    assert (run / "report.html").read_text() == "<title>my notes</title>"


@pytest.mark.parametrize("name", ["runs/mine", "splits/mine.json"])
def test_a_folder_that_only_resembles_a_comparison_is_refused(phantoms, tmp_path, name):
    out = tmp_path / "project"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    (out / "table.md").write_text("mine")
    before = content(out)
    with pytest.raises(InputError, match="is no comparison"):
        api.compare(phantoms, out, "vnet", labeled=2, splits=phantoms / "splits.json")
    assert content(out) == before


def test_a_split_of_the_users_is_no_run_to_resume(phantoms, tmp_path, tiny):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(phantoms / "splits.json", out / "split.json")
    before = content(out)
    with pytest.raises(InputError, match="exists already"):
        api.train(phantoms, out, splits=out / "split.json", set=tiny, resume=True)
    assert content(out) == before


# ------------------------------------------------------------------------------ not in a data set

PLACES = ("imagesTr/run", "imagesUn", "imagesTs", "labelsTr", "images", "dataset.json/run")


@pytest.mark.parametrize("place", PLACES)
def test_no_command_writes_among_the_files_of_a_data_set(data, tiny_run, tmp_path, place):
    out = data / place
    source = tmp_path / "source"
    source.mkdir()
    commands = {
        "train": lambda: api.train(data, out),
        "compare": lambda: api.compare(data, out, "vnet"),
        "ablate": lambda: api.ablate(data, out),
        "predict": lambda: api.predict(tiny_run, data, out),
        "evaluate": lambda: api.evaluate(data / "labelsTr", data, out),
        "export": lambda: api.export(tiny_run, out),
        "prepare": lambda: api.prepare("la", source, out),
        "demo": lambda: api.demo(out),
    }
    before = content(data)
    for name, command in commands.items():
        with pytest.raises(InputError, match="of the data set") as caught:
            command()
        assert str(out) in str(caught.value), name
    assert content(data) == before
    assert sorted(path.name for path in data.iterdir()) == [
        "dataset.json", "imagesTr", "labelsTr", "splits.json"
    ]  # fmt: skip


def test_beside_its_files_a_run_does_no_harm(data, tiny, tmp_path):
    splits = data / "splits.json"
    api.train(data, data / "runs" / "first", splits=splits, set=tiny, quiet=True)
    assert not api.inspect(data).errors
    api.train(data, data / "second", splits=splits, set=tiny, quiet=True)
    assert not api.inspect(data).errors


def test_every_layout_is_known_by_its_files(tmp_path):
    plain, papers, other = tmp_path / "plain", tmp_path / "papers", tmp_path / "other"
    (plain / "images").mkdir(parents=True)
    (papers / "a").mkdir(parents=True)
    with h5py.File(papers / "a" / "mri_norm2.h5", "w") as file:
        file["image"] = np.zeros((2, 2, 2))
    (other / "labels").mkdir(parents=True)
    for place in (plain / "labels" / "x", plain / "imagesTr", papers / "images" / "deep" / "run"):
        with pytest.raises(InputError, match="of the data set"):
            refuse_within_dataset(place)
    for place in (plain / "runs", papers / "runs", papers / "a" / "run", other / "labels" / "x"):
        refuse_within_dataset(place)


def test_a_link_to_the_images_is_no_way_in(tmp_path):
    store, root = tmp_path / "store", tmp_path / "data"
    store.mkdir()
    root.mkdir()
    (root / "images").symlink_to(store)
    (tmp_path / "way").symlink_to(root)
    for place, dataset in ((store / "run", root), (tmp_path / "way" / "labels", None)):
        with pytest.raises(InputError, match="of the data set"):
            refuse_within_dataset(place, dataset)
    refuse_within_dataset(store / "run")
