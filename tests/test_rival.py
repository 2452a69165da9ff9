"""What benchmarks/rival_nnunet.py gives to nnU-Net and makes of it; without nnU-Net itself."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from dcamt.commands.options import label_count
from dcamt.config import load_config
from dcamt.data.dataset import read_dataset
from dcamt.data.volume import read_image, read_label
from dcamt.runs.plan import plan_run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def rival(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("rival_nnunet")


@pytest.fixture
def ends(rival, monkeypatch, capsys):
    """``ends("DATASET", ...)`` runs the script: exit code and standard error."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["rival_nnunet.py", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            rival.main()
        return left.value.code, capsys.readouterr().err

    return run


def ask(root, out, *more):
    return (root, "--splits", root / "splits.json", "--minutes", 1, "--out", out, *more)


def names(folder):
    return sorted(path.name.partition(".")[0] for path in folder.iterdir())


# ----------------------------------------------------------------------- what nnU-Net is given


def poisoned(phantoms, tmp_path):
    """The phantoms, with nothing readable in the labels that nnU-Net must not see."""
    root = tmp_path / "data"
    shutil.copytree(phantoms, root)
    split = json.loads((root / "splits.json").read_text())
    for name in (*split["unlabeled"], *split["val"]):
        (root / "labelsTr" / f"{name}.nii.gz").write_bytes(b"hidden")
    return root, split


def test_nnunet_gets_the_labels_of_the_labelled_cases_alone(rival, phantoms, tmp_path):
    root, split = poisoned(phantoms, tmp_path)
    dataset, found = rival.chosen(root, root / "splits.json", None)
    raw = tmp_path / "raw"
    rival.write_raw(dataset, found, raw)

    assert names(raw) == ["dataset", "imagesTr", "imagesTs", "labelsTr"]
    assert names(raw / "labelsTr") == sorted(split["labeled"])
    assert names(raw / "imagesTr") == sorted(f"{name}_0000" for name in split["labeled"])
    assert names(raw / "imagesTs") == sorted(f"{name}_0000" for name in split["val"])
    for name in split["labeled"]:
        image = read_image([raw / "imagesTr" / f"{name}_0000.nii.gz"])
        label = read_label(raw / "labelsTr" / f"{name}.nii.gz")
        before = read_image([root / "imagesTr" / f"{name}.nii.gz"])
        assert np.array_equal(image.array, before.array)
        assert np.array_equal(label.array, read_label(root / "labelsTr" / f"{name}.nii.gz").array)
        for volume in (image, label):
            assert np.allclose(volume.affine, before.affine)
    told = json.loads((raw / "dataset.json").read_text())
    assert told["labels"] == {"background": 0, "atrium": 1}
    assert (told["numTraining"], told["file_ending"]) == (2, ".nii.gz")
    assert len(told["channel_names"]) == 1
    read_dataset(raw)  # a data set of nnU-Net's layout to us, too


@pytest.mark.parametrize("labeled", [None, "1", "3", "all"])
def test_the_labelled_cases_are_those_that_we_train_on(rival, phantoms, tiny, labeled):
    splits = phantoms / "splits.json"
    ours = plan_run(phantoms, load_config(None, tiny), splits, label_count(labeled)).split
    _, split = rival.chosen(phantoms, splits, labeled)
    assert (split.labeled, split.val) == (ours.labeled, ours.val)


def test_two_channels_an_ignored_class_and_classes_that_nobody_named(rival, tmp_path):
    root = tmp_path / "data"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in "abc":
        image = rng.normal(100, 10, (16, 17, 18, 2)).astype(np.float32)
        label = np.zeros((16, 17, 18), np.uint8)
        label[4:9, 4:9, 4:9], label[12:, 12:, 12:] = 1, 7
        nib.save(nib.Nifti1Image(image, np.diag([1, 2, 3, 1])), root / "images" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.diag([1, 2, 3, 1])), root / "labels" / f"{name}.nii.gz")
    named = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"back": 0, "it": 1, "ignore": 7}}
    (root / "dataset.json").write_text(json.dumps(named))
    split = {"labeled": ["a"], "unlabeled": ["b"], "val": ["c"]}
    (root / "splits.json").write_text(json.dumps(split))

    dataset, found = rival.chosen(root, root / "splits.json", None)
    rival.write_raw(dataset, found, tmp_path / "raw")

    assert names(tmp_path / "raw" / "imagesTr") == ["a_0000", "a_0001"]
    second = read_image([tmp_path / "raw" / "imagesTr" / "a_0001.nii.gz"])
    whole = read_image([root / "images" / "a.nii.gz"])
    assert np.array_equal(second.array[0], whole.array[1])
    told = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert told["channel_names"] == {"0": "T1", "1": "T2"}
    assert told["labels"] == {"background": 0, "it": 1, "ignore": 2}
    written = read_label(tmp_path / "raw" / "labelsTr" / "a.nii.gz").array
    assert [int((written == value).sum()) for value in (1, 2, 7)] == [125, 120, 0]

    (root / "dataset.json").unlink()
    shutil.copy(root / "labels" / "a.nii.gz", root / "labels" / "b.nii.gz")
    with pytest.raises(rival.InputError, match="without gaps"):  # 7 is a class then
        rival.chosen(root, root / "splits.json", None)


# ---------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_sentence_and_nothing_is_written(ends, phantoms, tmp_path):
    out = tmp_path / "out"
    few = tmp_path / "few.json"
    few.write_text(json.dumps({"labeled": ["phantom_000"], "unlabeled": [], "val": []}))
    cases = {
        "no such folder": ask(tmp_path / "absent", out),
        "labelled cases asked for: 50": ask(phantoms, out, "--labeled", 50),
        "--labeled few": ask(phantoms, out, "--labeled", "few"),
        "--minutes 0": ask(phantoms, out, "--minutes", 0),
        "--minutes nan": ask(phantoms, out, "--minutes", "nan"),
        "--spacing: give": ask(phantoms, out, "--spacing", 1, 1, 0),
        "--seed -1": ask(phantoms, out, "--seed", -1),
        "names no validation case": ask(phantoms, out, "--splits", few),
        "of the data set": ask(phantoms, phantoms / "imagesTr" / "out"),
        "cannot be read": ask(phantoms, out, "--splits", tmp_path / "absent.json"),
    }
    for fault, asked in cases.items():
        code, told = ends(*asked)
        assert code == 2, told
        assert fault in told and told.startswith("rival_nnunet: ") and told.count("\n") == 1
    assert not out.exists()


def test_a_folder_of_somebody_else_is_left_alone(ends, phantoms, tmp_path):
    out, env = tmp_path / "out", tmp_path / "env"
    for folder in (out, env):
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    code, told = ends(*ask(phantoms, out))
    assert (code, "exists already" in told) == (2, True)
    code, told = ends(*ask(phantoms, tmp_path / "new", "--env", env))
    assert (code, "choose another --env" in told) == (2, True)
    assert [names(out), names(env)] == [["mine"], ["mine"]]


def test_what_was_begun_otherwise_is_not_gone_on_with(rival, tmp_path, capsys):
    rival.begin(tmp_path, {"minutes": 1.0, "seed": 0})
    rival.begin(tmp_path, {"minutes": 1.0, "seed": 0})
    with pytest.raises(rival.InputError, match=r"other settings \(minutes, seed\)"):
        rival.begin(tmp_path, {"minutes": 2.0, "seed": 1})


# ----------------------------------------------------------------------------------- its steps


def test_a_folder_has_its_name_when_it_is_complete(rival, tmp_path):
    folder = tmp_path / "predicted"

    def killed(part):
        (part / "a").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rival.once(folder, killed, keep=True)
    assert not folder.exists()
    rival.once(folder, lambda part: (part / "b").touch(), keep=True)
    assert names(folder) == ["a", "b"]
    rival.once(folder, killed)  # it is there
    with pytest.raises(KeyboardInterrupt):
        rival.once(tmp_path / "raw", killed)
    rival.once(tmp_path / "raw", lambda part: (part / "b").touch())
    assert names(tmp_path / "raw") == ["b"]


def test_the_row_tells_what_was_planned_along_x_y_z(rival, tmp_path):
    work = rival.Work(tmp_path, tmp_path / "env", {"mirroring": False}, 0)
    (work.model / "fold_all").mkdir(parents=True)
    # Arrays of nnU-Net are (Z, Y, X), and the coarsest axis comes first: here Y.
    fullres = {"patch_size": [20, 30, 10], "spacing": [2.0, 3.0, 1.0], "batch_size": 2}
    plans = {"configurations": {"3d_fullres": fullres}, "transpose_backward": [1, 0, 2]}
    (work.model / "plans.json").write_text(json.dumps(plans))
    parts = [{"seconds": 30.0, "iterations": 2}, {"seconds": 60.0, "iterations": 8}]
    progress = {"epochs": 1, "parts": parts, "device": "A GPU", "threads": 3}
    (work.model / "fold_all" / "progress.json").write_text(json.dumps(progress))
    facts = rival.facts(work)
    assert facts["patch"] == [10, 20, 30]
    assert facts["planned_spacing"] == [1.0, 2.0, 3.0]
    assert (facts["trained_minutes"], facts["iterations"]) == (1.5, 10)
    mean = {"dice": 0.8512, "hd95": None, "asd": 0.5}
    asked = {"nnunet": "9", "mirroring": False, "labeled": ["a"]}
    *_, row = rival.table({**asked, **facts, "mean": mean, "missed": 1}).splitlines()
    assert row == (
        "| nnU-Net 9, no mirroring | 1 | 85.12 | \N{EN DASH} | 0.50 | 1 | 1.5 | 10 | 10x20x30 "
        "| 1x2x3 | 2 | A GPU, 3 threads |"
    )


# -------------------------------------------------------------------------------- its schedule


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """Our trainer on a stand-in for nnU-Net's, whose iterations take seconds of a clock of its own.

    ``trainer(seconds, cost, until)`` trains, or is killed when the clock strikes ``until``.
    """
    clock = [0.0]

    class Stand:
        def __init__(self, plans, configuration, fold, dataset_json, device):
            self.num_epochs, self.current_epoch, self.output_folder = 1000, 0, tmp_path
            self.device, self.checkpoint = SimpleNamespace(type="cpu"), tmp_path / "latest"
            self.lr_scheduler = SimpleNamespace(max_steps=1000)
            self.network = SimpleNamespace(train=lambda: None)
            self.logger = SimpleNamespace(
                log=lambda *_: None, get_value=lambda *_, step: 0.0, plot_progress_png=None
            )
            self.dataloader_train = iter(lambda: None, 1)
            self.rates = []

        def on_train_start(self):
            clock[0] += 100  # before the clock of the training runs

        def on_train_epoch_start(self):
            self.rates.append(1 - self.current_epoch / self.lr_scheduler.max_steps)

        def on_epoch_end(self):
            self.save_checkpoint(str(self.checkpoint))
            self.current_epoch += 1

        def save_checkpoint(self, filename):
            Path(filename).write_text(str(self.current_epoch + 1))

        def load_checkpoint(self, filename):
            self.current_epoch = int(Path(filename).read_text())

        def train_step(self, batch):
            clock[0] += self.cost
            if clock[0] > self.until:
                raise KeyboardInterrupt

        def run_training(self):
            self.on_train_start()
            for _ in range(self.current_epoch, self.num_epochs):
                self.on_train_epoch_start()
                for _ in range(self.num_iterations_per_epoch):
                    self.train_step(next(self.dataloader_train))
                self.on_epoch_end()

    package = "nnunetv2.training.nnUNetTrainer"
    variant = f"{package}.variants.data_augmentation.nnUNetTrainerNoMirroring"
    for module in (f"{package}.nnUNetTrainer", variant):
        stand = ModuleType(module)
        stand.nnUNetTrainer, stand.nnUNetTrainerNoMirroring = Stand, type("Other", (Stand,), {})
        monkeypatch.setitem(sys.modules, module, stand)
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.reload(importlib.import_module("nnunet_trainer"))
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])

    def train(seconds, cost, until=float("inf")):
        monkeypatch.setenv("RIVAL_SECONDS", str(seconds))
        monkeypatch.setenv("RIVAL_SEED", "0")
        clock[0] = 0.0
        made = module.TimedTrainer({}, "3d_fullres", "all", {}, None)
        made.cost, made.until = cost, until
        if made.checkpoint.exists():
            made.load_checkpoint(made.checkpoint)
        made.run_training()
        return made

    return train


def spent(trained):
    return [sum(part[key] for part in trained.parts) for key in ("seconds", "iterations")]


@pytest.mark.parametrize(
    ("seconds", "cost", "epochs"),
    [(120, 1.0, 20), (120, 7.0, 15), (120, 50.0, 1), (7200, 0.7, 240), (36000, 20.0, 1000)],
)
def test_the_rate_ends_when_the_time_does(trainer, seconds, cost, epochs):
    trained = trainer(seconds, cost)
    assert trained.num_epochs == trained.lr_scheduler.max_steps == trained.current_epoch == epochs
    assert trained.rates[0] == 1 and trained.rates[-1] == pytest.approx(1 / epochs)
    used, iterations = spent(trained)
    assert used == pytest.approx(seconds, abs=cost if cost < 50 else 30)
    assert iterations == pytest.approx(used / cost)


def test_a_killed_training_goes_on_for_the_time_that_is_left(trainer):
    with pytest.raises(KeyboardInterrupt):
        trainer(120, 1.0, until=100 + 61)
    trained = trainer(120, 2.0)  # on a machine that is slower today
    assert spent(trained)[0] == pytest.approx(120, abs=2)
    assert 60 + 25 <= spent(trained)[1] <= 60 + 31
    assert len(trained.rates) < trained.num_epochs == 20


def test_an_epoch_without_its_checkpoint_is_done_again(trainer, tmp_path):
    first = trainer(60, 1.0)
    (tmp_path / "latest").write_text("3")
    again = trainer(60, 1.0)
    assert again.parts[:5] == first.parts[:5]
    assert len(again.parts) == len(first.parts) == 22
    assert spent(again)[0] == pytest.approx(60, abs=1)
