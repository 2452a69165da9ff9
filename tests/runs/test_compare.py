"""`dcamt compare` as a command: killed, gone on with, refused, and what it leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import h5py
import pytest
import yaml

from dcamt import api
from dcamt.config import load_config
from dcamt.data.phantom import write_phantoms
from dcamt.data.volume import read_image, read_label
from dcamt.errors import InputError
from dcamt.evaluation.statistics import gap_closed
from dcamt.files import LOCK, alone
from dcamt.records.run_folder import read_config
from dcamt.runs.compare import compare
from dcamt.runs.design import Design, parse_rows
from dcamt.runs.plan import plan_run

METHODS = "vnet,dca-mt:heads=1:head_size=4"
FIRST, OTHER, CEILING = (
    "vnet-2-labels-seed0",
    "dca-mt+heads=1+head_size=4-2-labels-seed0",
    "vnet-all-labels-seed0",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven phantoms: 2 labelled, 2 unlabelled, 1 validation, 2 test."""
    root = tmp_path_factory.mktemp("compared") / "data"
    write_phantoms(root, 7, (20, 18, 16), seed=3, labeled=2, val=3)
    splits = json.loads((root / "splits.json").read_text())
    splits |= {"val": splits["val"][:1], "test": splits["val"][1:]}
    (root / "splits.json").write_text(json.dumps(splits))
    return root


@pytest.fixture(scope="module")
def settings():
    return ["device=cpu", "network.width=2", "data.patch=[16,16,16]", "train.iterations=20",
            "train.learning_rate=0.05", "train.validate_every=0",
            "train.checkpoint_every=5"]  # fmt: skip


def times(run):
    return {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def killed(data, settings, tmp_path_factory, cache):
    """A comparison whose processes were all killed after the first run, and was then gone on with.

    Returns the folder and what the finished run's files looked like before and after.
    """
    out = tmp_path_factory.mktemp("comparison") / "out"
    command = [sys.executable, "-m", "dcamt.cli", "compare", data, "--out", out,
               "--methods", METHODS, "--labeled", "2,all", "--seeds", "1",
               "--splits", data / "splits.json",
               *(part for s in settings for part in ("--set", s))]  # fmt: skip
    one = list(map(str, [*command, "--jobs", "1"]))
    process = subprocess.Popen(one, start_new_session=True)
    while not list((out / "runs" / OTHER).glob("last.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "table.md").exists()
    before = times(out / "runs" / FIRST)
    two = list(map(str, [*command, "--jobs", "2"]))
    done = subprocess.run(two, capture_output=True, text=True, check=True)
    return out, before, done


def test_what_was_finished_is_not_repeated(killed):
    out, before, done = killed
    assert times(out / "runs" / FIRST) == before
    assert "3 runs, 1 of them finished" in done.stderr
    lines = [line.split()[:2] for line in done.stderr.splitlines()[1:3]]
    assert [count for count, _ in lines] == ["1/2", "2/2"]
    assert {name for _, name in lines} == {OTHER, CEILING}
    assert {run.name for run in (out / "runs").iterdir()} == {FIRST, OTHER, CEILING}
    log = (out / "runs" / OTHER / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log[1:]] == [str(i) for i in range(1, 21)]
    assert not list(out.rglob(".tmp-*"))


def test_the_table_shows_the_test_cases(killed, data):
    out, _, done = killed
    assert done.stdout == (out / "table.md").read_text()
    assert "2 test cases" in done.stdout
    results = json.loads((out / "results.json").read_text())
    splits = json.loads((data / "splits.json").read_text())
    assert [(row["name"], row["labels"], row["labeled"]) for row in results["rows"]] == [
        ("vnet", "2", 2), (METHODS[5:], "2", 2), ("vnet", "all", 4)
    ]  # fmt: skip
    for row in results["rows"]:
        (run,) = row["runs"]
        fresh = api.evaluate(out / run["folder"] / "test", data)
        assert row["mean"] == fresh["mean"]
        assert sorted({case["case"] for case in fresh["cases"]}) == splits["test"]
    few, other, full = (row["mean"]["dice"] for row in results["rows"])
    # Which may be none at all: how far three iterations get depends on the processor.
    assert results["rows"][1]["gap_closed"] == gap_closed(other, few, full)


def test_every_run_is_an_ordinary_one_on_the_same_cases(killed, data):
    out, _, _ = killed
    config = load_config(out / "runs" / OTHER / "config.yaml")
    assert (config.method.name, config.seed) == ("dca-mt", 0)
    assert config.method.options["heads"] == 1
    splits = json.loads((data / "splits.json").read_text())
    for run in (FIRST, OTHER):
        assert json.loads((out / "runs" / run / "split.json").read_text()) == splits
    ceiling = json.loads((out / "runs" / CEILING / "split.json").read_text())
    assert ceiling["labeled"] == splits["labeled"] + splits["unlabeled"]


def test_pictures_and_tables_are_there(killed):
    out, _, _ = killed
    for name in ("metrics-2-labels.png", "contours-2-labels.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert "\\toprule" in (out / "table.tex").read_text()
    assert (out / "table.csv").read_text().count("\n") == 4


def design(data, methods=METHODS, **changes):
    return Design(parse_rows(methods), **{"counts": [2, "all"], "seeds": 1} | changes,
                  splits=data / "splits.json")  # fmt: skip


def test_a_finished_comparison_trains_nothing(killed, data, settings, monkeypatch):
    out, _, _ = killed
    before, table = times(out / "runs"), (out / "table.md").read_bytes()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    compare(data, out, design(data), load_config(None, settings), quiet=True)
    assert times(out / "runs") == before
    assert (out / "table.md").read_bytes() == table


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.iterations=50"], "train.iterations = 20, not 50"),
        (["network.width=4"], "network.width"),
    ],
)
def test_other_settings_are_refused(killed, data, settings, changes, words):
    out, _, _ = killed
    with pytest.raises(InputError, match=words):
        compare(data, out, design(data), load_config(None, [*settings, *changes]), quiet=True)


def test_another_data_set_or_split_is_refused(killed, data, settings, phantoms, tmp_path):
    out, _, _ = killed
    config = load_config(None, settings)
    with pytest.raises(InputError, match=r"data set .* put it or a link to it back there"):
        compare(phantoms, out, Design(parse_rows("vnet"), [2], 1), config, quiet=True)
    splits = json.loads((data / "splits.json").read_text())
    splits["labeled"], splits["unlabeled"] = splits["unlabeled"], splits["labeled"]
    (tmp_path / "other.json").write_text(json.dumps(splits))
    other = Design(parse_rows("vnet"), [2], 1, tmp_path / "other.json")
    with pytest.raises(InputError, match="other cases"):
        compare(data, out, other, config, quiet=True)


def test_rows_of_other_cases_or_settings_cannot_join(killed, data, settings, phantoms, tmp_path):
    out, _, _ = killed
    table, rows = (out / "table.md").read_bytes(), parse_rows("pseudo-label")
    splits = json.loads((data / "splits.json").read_text())
    for part, value in (("test", splits["test"][:1]), ("val", splits["test"][:1])):
        other = {**splits, part: value}
        other["unlabeled"] = [name for name in other["unlabeled"] if name not in value]
        if part == "val":
            other["test"] = splits["val"] + splits["test"][1:]
        (tmp_path / f"{part}.json").write_text(json.dumps(other))
        told = "other test cases" if part == "test" else "other validation cases"
        with pytest.raises(InputError, match=told):
            asked = Design(rows, [2], 1, tmp_path / f"{part}.json")
            compare(data, out, asked, load_config(None, settings), quiet=True)
    asked = Design(rows, [2], 1, data / "splits.json")
    with pytest.raises(InputError, match="iterations = 20, not 50"):
        changed = load_config(None, [*settings, "train.iterations=50"])
        compare(data, out, asked, changed, quiet=True)
    with pytest.raises(InputError, match=r"learning_rate = 0\.05, not 0\.01"):  # left out
        left = load_config(None, [s for s in settings if "learning_rate" not in s])
        compare(data, out, asked, left, quiet=True)
    with pytest.raises(InputError, match="put it or a link to it back there"):
        compare(phantoms, out, Design(rows, [2], 1), load_config(None, settings), quiet=True)
    with pytest.raises(InputError, match="was begun without --init"):
        given = load_config(None, settings)
        compare(data, out, asked, given, quiet=True, init=out / "runs" / OTHER)
    assert (out / "table.md").read_bytes() == table


def test_a_link_may_lead_to_a_data_set_that_was_moved(killed, data, settings, tmp_path):
    out, old = tmp_path / "out", tmp_path / "old"
    shutil.copytree(killed[0], out, symlinks=True)
    for path in (out / "runs").glob("*/config.yaml"):
        path.write_text(path.read_text().replace(str(data), str(old)))
    config, before = load_config(None, settings), times(out / "runs")
    with pytest.raises(InputError, match="put it or a link to it back there"):
        compare(data, out, design(data), config, quiet=True)
    old.symlink_to(data)
    compare(data, out, design(data), config, quiet=True)
    assert times(out / "runs") == before


def test_two_at_once_are_refused(killed, data, settings):
    out, _, _ = killed
    with alone(out), pytest.raises(InputError, match="another dcamt is at work there"):
        compare(data, out, design(data), load_config(None, settings), quiet=True)


WRONG = {
    "an unknown method": ({"methods": "vnet,unet"}, "'unet' is unknown"),
    "an unknown option": ({"methods": "vnet,dca-mt:headz=1"}, "headz"),
    "an option of another method": ({"methods": "vnet:heads=1"}, "heads"),
    "an option without value": ({"methods": "dca-mt:heads"}, "NAME:KEY=VALUE"),
    "no method": ({"methods": "vnet,"}, "NAME"),
    "a method twice": ({"methods": "vnet,vnet"}, "more than once"),
    "no seed": ({"seeds": 0}, "--seeds 0"),
    "no job": ({"jobs": 0}, "--jobs 0"),
    "a number twice": ({"labeled": [2, 2]}, "more than once"),
    "the ceiling alone": ({"labeled": "all"}, "add a number"),
    "more labels than there are": ({"labeled": [2, 40]}, "40"),
    "options of a method that is not there": ({"set": ["method.heads=2"]}, "not compared"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_refused_before_anything_is_written(phantoms, tmp_path, what):
    changes, words = WRONG[what]
    options = {"methods": "vnet,mean-teacher", "labeled": 2, "splits": phantoms / "splits.json",
               "quiet": True}  # fmt: skip
    with pytest.raises(InputError, match=words):
        api.compare(phantoms, tmp_path / "out", **options | changes)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(phantoms, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is no comparison"):
        api.compare(phantoms, tmp_path, "vnet", labeled=2, splits=phantoms / "splits.json")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_folder_is_refused(phantoms, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    before = (run / "config.yaml").read_text()
    assert (run / LOCK).exists()
    with pytest.raises(InputError, match="is no comparison"):
        api.compare(phantoms, run, "vnet", labeled=2, splits=phantoms / "splits.json")
    assert (run / "config.yaml").read_text() == before
    assert not (run / "runs").exists()


@pytest.mark.parametrize(
    "layout", ["the literature's", pytest.param("listed", marks=pytest.mark.slow)]
)
def test_test_cases_whose_files_all_have_one_name(data, settings, tmp_path, layout):
    papers, listed = tmp_path / "papers", {}
    for image in (data / "imagesTr").iterdir():
        case = image.name.removesuffix(".nii.gz")
        (papers / case).mkdir(parents=True)
        label = data / "labelsTr" / image.name
        if layout == "listed":
            listed[case] = {"images": [f"{case}/scan.nii.gz"], "label": f"{case}/truth.nii.gz"}
            shutil.copy(image, papers / case / "scan.nii.gz")
            shutil.copy(label, papers / case / "truth.nii.gz")
        else:
            with h5py.File(papers / case / "mri_norm2.h5", "w") as file:
                file["image"] = read_image([image]).array[0]
                file["label"] = read_label(label).array
    if listed:
        description = json.loads((data / "dataset.json").read_text()) | {"dataset": listed}
        (papers / "dataset.json").write_text(json.dumps(description))
    out = tmp_path / "out"
    found = api.compare(papers, out, "vnet", labeled=2, seeds=1, splits=data / "splits.json",
                        set=[*settings, "train.iterations=2"], quiet=True)  # fmt: skip
    tests = json.loads((data / "splits.json").read_text())["test"]
    assert len(tests) == 2
    assert found["cases"] == "test"
    assert found["case_count"] == 2
    assert {row["case"] for row in found["rows"][0]["runs"][0]["cases"]} == set(tests)


@pytest.mark.slow
def test_a_test_case_whose_name_ends_like_a_channel(data, settings, tmp_path):
    splits = json.loads((data / "splits.json").read_text())
    (case,) = splits["test"] = splits["test"][:1]
    for folder, kind in (("images", "imagesTr"), ("labels", "labelsTr")):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for name in {name for names in splits.values() for name in names}:
            own = f"{name}_0000" if name == case else name
            with suppress(FileNotFoundError):
                shutil.copy(data / kind / f"{name}.nii.gz", tmp_path / f"set/{folder}/{own}.nii.gz")
    splits["test"] = [f"{case}_0000"]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    given = {"labeled": 2, "seeds": 1, "splits": tmp_path / "splits.json", "quiet": True}
    cut = [*settings, "train.iterations=2"]
    found = api.compare(tmp_path / "set", tmp_path / "out", "vnet", set=cut, **given)
    assert {row["case"] for row in found["rows"][0]["runs"][0]["cases"]} == {f"{case}_0000"}


PLANNED = ["device=cpu", "network.name=segresnet", "network.width=8", "train.iterations=1"]


def test_all_methods_train_on_one_patch_that_suits_each(tmp_path):
    """A SegResNet takes multiples of 8 voxels, and the V-Net that SDCL adds multiples of 16."""
    write_phantoms(tmp_path / "data", 3, (24, 20, 18), seed=3, labeled=1, val=1)
    out, config = tmp_path / "out", load_config(None, PLANNED)
    splits = tmp_path / "data" / "splits.json"
    design = Design(parse_rows("vnet,sdcl"), seeds=1, splits=splits)
    alone = plan_run(tmp_path / "data", config, splits, None).config.plan.patch
    assert any(side % 16 for side in alone)
    compare(tmp_path / "data", out, design, config, quiet=True, jobs=1)
    patches = {read_config(run).plan.patch for run in (out / "runs").iterdir()}
    assert len(patches) == 1
    assert not any(side % 16 for side in patches.pop())
    before = times(out / "runs")
    compare(tmp_path / "data", out, replace(design, rows=design.rows[:1]), config, quiet=True)
    assert times(out / "runs") == before
    other = load_config(None, [*PLANNED, "data.patch=[24,16,16]"])
    with pytest.raises(InputError, match=r"data\.patch"):
        compare(tmp_path / "data", out, design, other, quiet=True)
    with pytest.raises(InputError, match=r"must be a multiple of 16"):  # before anything trains
        compare(tmp_path / "data", tmp_path / "new", design, other, quiet=True)
    assert not (tmp_path / "new").exists()
    (run, _) = (out / "runs").iterdir()
    kept = yaml.safe_load((run / "config.yaml").read_text())
    kept["plan"]["patch"] = [24, 16, 16]
    (run / "config.yaml").write_text(yaml.safe_dump(kept))
    with pytest.raises(InputError, match="cannot be compared"):
        compare(tmp_path / "data", out, design, config, quiet=True)


def test_the_first_failure_is_told(phantoms, tmp_path, settings):
    """Nothing warns of a rate that breaks the network; its log does."""
    out = tmp_path / "out"
    changes = [*settings, "train.iterations=3", "train.learning_rate=1e30"]
    with pytest.raises(InputError, match=r"of 1 runs failed.*the loss 'supervised'"):
        api.compare(phantoms, out, "vnet", labeled=2, seeds=1, set=changes, quiet=True,
                    splits=phantoms / "splits.json")  # fmt: skip
    assert not (out / "table.md").exists()
