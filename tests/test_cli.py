import csv
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import safe_open

from dcamt.config import load_config
from dcamt.data.volume import write_volume
from dcamt.evaluation.evaluate import evaluate
from dcamt.files import holds
from dcamt.networks import BACKBONES

SIZE = (16, 16, 16)
SPLITS = {"labeled": ["c0", "c1"], "unlabeled": ["c2", "c3"], "val": ["c4"]}


@pytest.fixture
def data(tmp_path):
    """A plain data set of five cubes, all of which have a label."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for i in range(5):
        label = np.zeros(SIZE, np.int16)
        label[4:10, 5 : 9 + i, 4:12] = 1
        image = (label * 200 + rng.normal(300, 40, SIZE)).astype(np.float32)
        write_volume(root / "images" / f"c{i}.nii.gz", image, np.diag([1, 1, 1.5, 1]))
        write_volume(root / "labels" / f"c{i}.nii.gz", label, np.diag([1, 1, 1.5, 1]))
    (root / "splits.json").write_text(json.dumps(SPLITS))
    (root / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}})
    )
    return root


def sets(values):
    return [part for value in values for part in ("--set", value)]


def train_args(data, out, tiny, *more):
    return ["train", data, "--out", out, "--splits", data / "splits.json", "--quiet",
            *sets(tiny), *more]  # fmt: skip


def checkpoint_of(run):
    with safe_open(run / "last.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def assert_equal(one, two):
    """The same tensors, bit for bit, and the same state."""
    assert one[1] == two[1]
    assert list(one[0]) == list(two[0])
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])


def fingerprint(folder):
    """Every file below ``folder`` and what it holds."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_refused(result, *words):
    """Exit code 2 and one sentence that holds ``words``; no traceback."""
    code, out, err = result
    assert code == 2, err
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("dcamt: ")
    assert len(lines[0]) < 600
    for word in words:
        assert str(word) in lines[0]


def image_of(data, name="c1"):
    return data / "images" / f"{name}.nii.gz"


def label_of(data, name="c1"):
    return data / "labels" / f"{name}.nii.gz"


def rewrite(path, change, affine=None):
    image = nib.load(path)
    array = change(np.asarray(image.dataobj).astype(np.float32))
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)


def put(value):
    def change(array):
        array[3, 3, 3] = value
        return array

    return change


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def declare(data, **changes):
    path = data / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def resplit(data, **changes):
    (data / "splits.json").write_text(json.dumps(SPLITS | changes))


MOVED = np.diag([1, 1, 1.5, 1]) + np.array([[0, 0, 0, 4], *[[0] * 4] * 3])
SPOILED = {
    "no folder": (shutil.rmtree, "data: "),
    "empty folder": (lambda d: (shutil.rmtree(d), d.mkdir()), "data: "),
    "no images": (lambda d: [p.unlink() for p in (d / "images").iterdir()], "images"),
    "truncated image": (lambda d: cut_short(image_of(d)), "c1.nii.gz"),
    "truncated unlabelled image": (lambda d: cut_short(image_of(d, "c2")), "c2.nii.gz"),
    "truncated validation image": (lambda d: cut_short(image_of(d, "c4")), "c4.nii.gz"),
    "truncated label": (lambda d: cut_short(label_of(d)), "c1.nii.gz"),
    "text for image": (lambda d: image_of(d).write_text("hello"), "c1.nii.gz"),
    "text for label": (lambda d: label_of(d).write_text("hello"), "c1.nii.gz"),
    "label of other shape": (lambda d: rewrite(label_of(d), lambda a: a[:, :-1]), "16 x 15 x 16"),
    "label elsewhere": (lambda d: rewrite(label_of(d), lambda a: a, MOVED), "4 mm"),
    "validation label elsewhere": (
        lambda d: rewrite(label_of(d, "c4"), lambda a: a, MOVED), "c4.nii.gz"),
    "undeclared class": (lambda d: rewrite(label_of(d), put(2)), "holds 2"),
    "undeclared class in validation": (lambda d: rewrite(label_of(d, "c4"), put(7)), "holds 7"),
    "fractional label": (lambda d: rewrite(label_of(d), put(0.5)), "whole numbers"),
    "negative label": (lambda d: rewrite(label_of(d), put(-1)), "-1"),
    "NaN label": (lambda d: rewrite(label_of(d), put(np.nan)), "c1.nii.gz"),
    "NaN": (lambda d: rewrite(image_of(d), put(np.nan)), "NaN"),
    "infinite": (lambda d: rewrite(image_of(d, "c3"), put(np.inf)), "infinite"),
    "2D": (lambda d: rewrite(image_of(d), lambda a: a[:, :, 0]), "c1.nii.gz"),
    "4D": (lambda d: rewrite(image_of(d), lambda a: np.stack([a, a], -1)), "channel"),
    "4D validation": (lambda d: rewrite(image_of(d, "c4"), lambda a: np.stack([a, a], -1)),
                      "channel"),
    "4D label": (lambda d: rewrite(label_of(d), lambda a: np.stack([a, a], -1)), "4D"),
    "no label at all": (lambda d: shutil.rmtree(d / "labels"), "label"),
    "nothing labelled in the split": (lambda d: resplit(d, labeled=[]), "no labelled case"),
    "labels of background only": (
        lambda d: [rewrite(label_of(d, n), lambda a: 0 * a) for n in ("c0", "c1")],
        "background only"),
    "a case twice in the split": (lambda d: resplit(d, val=["c0"]), "c0"),
    "an unknown case in the split": (lambda d: resplit(d, val=["c9"]), "c9"),
    "a broken split": (lambda d: (d / "splits.json").write_text("{"), "splits.json"),
    "a broken dataset.json": (lambda d: (d / "dataset.json").write_text("[1]"), "dataset.json"),
    "other channels declared": (
        lambda d: declare(d, channel_names={"0": "T1", "1": "T2"}), "channel"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_data_that_cannot_be_used_are_refused(cli, data, tmp_path, tiny, what):
    spoil, words = SPOILED[what]
    spoil(data)
    before = fingerprint(tmp_path)
    assert_refused(cli(*train_args(data, tmp_path / "run", tiny)), words)
    assert fingerprint(tmp_path) == before
    assert not (tmp_path / "run").exists()


WRONG_OPTIONS = {
    "unknown method": (["--method", "unet"], "dca-mt, dtc, dual-teacher"),
    "unknown key": (["--set", "train.iteration=5"], "iterations"),
    "unknown section": (["--set", "training.iterations=5"], "training"),
    "unknown option of the method": (["--set", "method.headz=2"], "headz"),
    "an option of another method": (["--method", "vnet"], "heads"),
    "no value": (["--set", "train.iterations"], "key=value"),
    "a value of the wrong kind": (["--set", "train.iterations=many"], "many"),
    "no iterations": (["--set", "train.iterations=0"], "iterations"),
    "negative seed": (["--seed", "-1"], "seed"),
    "a huge seed": (["--seed", str(10**19)], "seed"),
    "a rate that is no number": (["--set", "train.learning_rate=.nan"], "learning_rate"),
    "patch off the stride": (["--set", "data.patch=[16,16,20]"], "multiple of 16"),
    "a batch of one bottleneck voxel": (["--set", "train.unlabeled_batch=1"], "unlabeled_batch=2"),
    "unknown backbone": (["--set", "network.name=unet3d"], ", ".join(sorted(BACKBONES))),
    "a size of another backbone": (["--set", "network.size=B"], "no named sizes"),
    "window upside down": (["--set", "data.window=[300,100]"], "window"),
    "orientation": (["--set", "data.orientation=RAX"], "orientation"),
    "no label wanted": (["--labeled", "0"], "at least 1"),
    "more labels than there are": (["--labeled", "50"], "50"),
    "labels in words": (["--labeled", "few"], "few"),
    "no such recipe": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "no such splits file": (["--splits", "nowhere.json"], "nowhere.json"),
}


@pytest.mark.parametrize("what", WRONG_OPTIONS)
def test_options_that_make_no_sense_are_refused(cli, data, tmp_path, tiny, what):
    options, words = WRONG_OPTIONS[what]
    assert_refused(cli(*train_args(data, tmp_path / "run", tiny, *options)), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["- a\n- b\n", "train: [\n", "train:\n  iterationz: 3\n"])
def test_a_recipe_that_makes_no_sense_is_refused(cli, data, tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    result = cli("train", data, "--out", tmp_path / "run", "--config", tmp_path / "recipe.yaml")
    assert_refused(result, "recipe.yaml")


@pytest.mark.parametrize(
    "args",
    [["train", "data"], ["train", "data", "--out", "run", "--nonsense"], ["fly"],
     ["evaluate", "segmentations", "labels"],
     ["predict", "run", "scan", "--out", "out", "--weights", "middle"],
     ["train", "data", "--out", "run", "--device", "tpu"]],
)  # fmt: skip
def test_a_command_line_that_makes_no_sense_is_refused(cli, args):
    code, out, err = cli(*args)
    assert code == 2
    assert "Usage" in err
    assert "Traceback" not in out + err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(cli, data, tmp_path, tiny):
    without = [s for s in tiny if not s.startswith("device")]
    args = train_args(data, tmp_path / "run", without, "--device", "cuda")
    assert_refused(cli(*args), "GPU")
    assert not (tmp_path / "run").exists()


def test_a_run_that_exists_is_refused_and_stays(cli, data, tmp_path, tiny):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("years of work")
    for more in ([], ["--resume"]):
        assert_refused(cli(*train_args(data, run, tiny, *more)), "exists already", "--out")
        assert fingerprint(run) == {"thesis.txt": fingerprint(run)["thesis.txt"]}
    (tmp_path / "file").write_text("mine")
    assert_refused(cli(*train_args(data, tmp_path / "file", tiny)), "exists already")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_checkpoint_that_is_not_ours(cli, tiny_run, phantoms, tmp_path, tiny):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    torch.save({"weights": torch.ones(3)}, run / "last.safetensors")
    before = fingerprint(run)
    assert_refused(cli("predict", run, scan, "--out", tmp_path / "out"), "last.safetensors")
    assert_refused(cli(*train_args(phantoms, run, tiny, "--resume")), "last.safetensors")
    assert not (tmp_path / "out").exists()
    after = fingerprint(run)
    assert {name: after[name] for name in before if name != "log.csv"} == {
        name: before[name] for name in before if name != "log.csv"
    }


def test_a_run_that_is_none(cli, phantoms, tmp_path):
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    for run in (tmp_path / "nowhere", phantoms):
        assert_refused(cli("predict", run, scan, "--out", tmp_path / "out"), run)
        assert_refused(cli("report", run), run)


@pytest.mark.parametrize("what", ["missing", "empty", "truncated", "text", "2D", "other ending"])
def test_scans_that_cannot_be_segmented(cli, tiny_run, tmp_path, what):
    folder = tmp_path / "scans"
    path = folder / "a.nii.gz"
    if what != "missing":
        folder.mkdir()
    if what == "truncated":
        write_volume(path, np.random.default_rng(0).normal(size=SIZE), np.eye(4))
        cut_short(path)
    elif what == "text":
        path.write_text("hello")
    elif what == "2D":
        nib.save(nib.Nifti1Image(np.ones((9, 9), np.float32), np.eye(4)), path)
    elif what == "other ending":
        (folder / "a.png").write_text("not a volume")
    result = cli("predict", tiny_run, folder, "--out", tmp_path / "out", "--quiet")
    assert_refused(result, folder)
    assert not holds(tmp_path / "out")


def test_predictions_that_exist_are_refused(cli, tiny_run, phantoms, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "phantom_000.nii.gz").write_bytes(b"mine")
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    assert_refused(cli("predict", tiny_run, scan, "--out", out), "exists already", "--resume")
    assert fingerprint(out) == {"phantom_000.nii.gz": hashlib.sha256(b"mine").hexdigest()}


def test_evaluation_of_nothing_is_refused(cli, phantoms, tmp_path):
    args = ("evaluate", tmp_path / "nowhere", phantoms, "--out", tmp_path / "scores.json")
    assert_refused(cli(*args), "nowhere")
    assert not (tmp_path / "scores.json").exists()


def test_a_method_nobody_knows_costs_nothing(cli):
    assert_refused(cli("cost", "--method", "unet"), "unet")
    assert_refused(cli("cost", "--patch", "20", "16", "16"), "multiple of 16")
    assert_refused(cli("cost", "--methods", "vnet,unet"), "unet")
    assert_refused(cli("cost", "--methods", "vnet", "--patch", "20", "16", "16"), "multiple of 16")
    assert_refused(cli("cost", "--methods", "vnet", "--iterations", "0"), "--iterations 0")


@contextmanager
def no_space(size):
    """While it lasts, no file of this process grows beyond ``size`` bytes.

    It ends before pytest writes its own line on the test, which may go to a file as well.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_refuses_the_checkpoint_keeps_the_old_one(cli, phantoms, tmp_path, tiny):
    run = tmp_path / "run"
    assert cli(*train_args(phantoms, run, tiny))[0] == 0
    whole = fingerprint(run)
    config = load_config(run / "config.yaml", ["train.iterations=6"])
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("iterations: 3", "iterations: 6")
    )
    assert load_config(run / "config.yaml") == config
    with no_space(500_000):
        result = cli("train", phantoms, "--out", run, "--resume", "--quiet")
    assert_refused(result, "last.safetensors", "cannot be written")
    assert fingerprint(run)["last.safetensors"] == whole["last.safetensors"]
    assert not list(run.rglob(".tmp-*"))


def test_a_disk_that_refuses_the_segmentation_leaves_no_half_of_it(
    cli, tiny_run, phantoms, tmp_path
):
    scans, out = phantoms / "imagesTr", tmp_path / "out"
    args = ("--out", out, "--quiet")
    assert cli("predict", tiny_run, scans / "phantom_001.nii.gz", *args)[0] == 0
    before = fingerprint(out)
    with no_space(100):
        result = cli("predict", tiny_run, scans / "phantom_000.nii.gz", *args)
    assert_refused(result, "phantom_000", "cannot be written")
    assert fingerprint(out) == before


def test_a_full_disk_ends_the_training_with_a_sentence(cli, phantoms, small_disk, tiny):
    result = cli(*train_args(phantoms, small_disk / "run", tiny))
    assert_refused(result, "last.safetensors", "No space left")
    assert not (small_disk / "run" / "last.safetensors").exists()
    assert not list(small_disk.rglob(".tmp-*"))


def test_a_full_disk_from_the_start(cli, phantoms, small_disk, tiny):
    filler = (small_disk / "filler").open("wb", buffering=0)
    with filler, pytest.raises(OSError, match="space"):
        while True:
            filler.write(bytes(4096))
    assert_refused(cli(*train_args(phantoms, small_disk / "run", tiny)), "No space left")


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    ).stdout


def test_help_loads_nothing_heavy():
    loaded = python(
        "import sys\n"
        "from dcamt.cli import main\n"
        "for command in ([], ['train'], ['predict'], ['evaluate'], ['inspect'], ['cost'],\n"
        "        ['compare'], ['ablate'], ['prepare']):\n"
        "    sys.argv = ['dcamt', *command, '--help']\n"
        "    try: main()\n"
        "    except SystemExit as left: assert not left.code\n"
        "print('LOADED', *sys.modules)"
    )
    text, modules = loaded.rsplit("LOADED", 1)
    for command in ("demo", "inspect", "train", "predict", "evaluate", "report", "cost", "compare",
                    "ablate", "prepare"):  # fmt: skip
        assert command in text
    heavy = {"torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "matplotlib"}
    heavy |= {"h5py", "pydicom", "highdicom"}
    assert not heavy & set(modules.split())


def test_importing_the_package_loads_nothing_heavy():
    code = "import dcamt, sys; print('torch' in sys.modules, dcamt.__version__, dcamt.InputError)"
    assert python(code).startswith("False 0.2.0")


def test_version(cli):
    assert cli("--version")[:2] == (0, "0.2.0\n")


def test_hidden_labels_play_no_part(cli, phantoms, tmp_path, tiny):
    """Real or garbage in hidden labels and test cases: the weights are the same, bit for bit."""
    splits = json.loads((phantoms / "splits.json").read_text())
    splits["test"] = [splits["unlabeled"].pop()]
    weights = []
    for name in ("real", "garbage"):
        root = tmp_path / name
        shutil.copytree(phantoms, root)
        (root / "splits.json").write_text(json.dumps(splits))
        if name == "garbage":
            for case in (*splits["unlabeled"], *splits["test"]):
                (root / "labelsTr" / f"{case}.nii.gz").write_bytes(b"poison")
            (root / "imagesTr" / f"{splits['test'][0]}.nii.gz").write_bytes(b"poison")
        code, _, err = cli(*train_args(root, tmp_path / f"run_{name}", tiny))
        assert code == 0, err
        weights.append(checkpoint_of(tmp_path / f"run_{name}"))
    assert_equal(*weights)


def test_from_training_to_report(cli, phantoms, tmp_path, tiny):
    run, splits = tmp_path / "run", json.loads((phantoms / "splits.json").read_text())
    changes = [s for s in tiny if "validate_every" not in s] + ["train.validate_every=2"]
    code, out, err = cli(*[a for a in train_args(phantoms, run, changes) if a != "--quiet"])
    assert code == 0, err
    assert str(run) in out
    assert "iteration 3/3" in err

    names = {p.name for p in run.iterdir()}
    assert names == {
        "config.yaml", "split.json", "versions.json", "data.json", "log.csv", "last.safetensors",
        ".lock", "best.safetensors", "validation", "validation.json", "report.html", "tensorboard",
        "calibration.json",
    }  # fmt: skip
    assert json.loads((run / "split.json").read_text()) == splits | {"test": []}
    versions = json.loads((run / "versions.json").read_text())
    assert {"dcamt", "python", "torch", "numpy", "device"} <= set(versions)
    config = load_config(run / "config.yaml")
    assert config.dataset == phantoms.resolve()
    assert config.plan is not None
    assert config.plan.classes == ("background", "atrium")
    assert config.method.options["heads"] == 1
    assert config.method.options["temperature"] == 1  # what was not given is written down too
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["iteration", "seconds", "learning_rate"]
    assert list(rows[0])[-1] == "val_dice"
    assert [row["iteration"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["val_dice"]) for row in rows] == [False, True, True]
    assert [p.name for p in (run / "validation").glob("*.nii.gz")] == [
        f"{name}.nii.gz" for name in splits["val"]
    ]
    assert list((run / "tensorboard").glob("events*"))

    scores = json.loads((run / "validation.json").read_text())
    again = json.loads(json.dumps(evaluate(run / "validation", phantoms)))
    assert scores == again | {"not_predicted": 0}  # the labels of other cases are not its concern
    assert [row["case"] for row in scores["cases"]] == splits["val"]

    report = (run / "report.html").read_text()
    assert splits["val"][0] in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "https://" not in report

    code, _, err = cli("predict", run, phantoms, "--out", tmp_path / "out", "--weights", "best")
    assert code == 0, err
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 6
    code, out, err = cli("evaluate", tmp_path / "out", phantoms, "--out", tmp_path / "all.json")
    assert code == 0, err
    assert "Dice" in out
    assert len(json.loads((tmp_path / "all.json").read_text())["cases"]) == 6

    (run / "report.html").unlink()
    code, out, err = cli("report", run)
    assert code == 0, err
    assert (run / "report.html").read_text() == report

    code, _, err = cli("inspect", phantoms, "--json")
    assert code in (0, 2)
    assert "Traceback" not in err


def test_a_runs_configuration_repeats_the_run(cli, phantoms, tiny_run, tmp_path):
    args = ["train", phantoms, "--out", tmp_path / "again", "--splits", phantoms / "splits.json",
            "--config", tiny_run / "config.yaml", "--quiet"]  # fmt: skip
    code, _, err = cli(*args)
    assert (code, "holds a plan" in err) == (2, True)  # which is never thrown away unseen
    code, _, err = cli(*args, "--plan", tiny_run / "config.yaml")
    assert code == 0, err
    assert_equal(checkpoint_of(tmp_path / "again"), checkpoint_of(tiny_run))
    for name in ("config.yaml", "split.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny_run / name).read_bytes()


def test_quiet_is_quiet(cli, phantoms, tmp_path, tiny):
    code, out, err = cli(*train_args(phantoms, tmp_path / "run", tiny))
    assert (code, out, err) == (0, "", "")


def test_cost_in_json(cli):
    code, out, _ = cli("cost", "--method", "vnet", "--json")
    assert code == 0
    assert json.loads(out)["parameters"] == 9_448_866
