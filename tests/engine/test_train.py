import csv
import math
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import save_file
from torch.optim import SGD, Adam

from dcamt import methods
from dcamt.config import TrainConfig, load_config
from dcamt.data.dataset import read_dataset
from dcamt.data.patches import Batches
from dcamt.data.prepare import prepare
from dcamt.data.split import choose_split, hide_labels
from dcamt.data.survey import survey
from dcamt.engine import checkpoint
from dcamt.engine.device import choose_device, make_fabric
from dcamt.engine.signals import Interrupted
from dcamt.engine.train import is_stopped, train
from dcamt.engine.trainer import Update, learning_rate, set_learning_rate
from dcamt.errors import InputError
from dcamt.losses.alignment import squared_distances
from dcamt.runs.build import build_method

METHODS = {
    **{name: [f"method.name={name}"] for name in methods.METHODS},
    "ad-mt": ["method.name=ad-mt", "method.turn=2"],
    "dca-mt": ["method.name=dca-mt", "method.heads=1", "method.head_size=4"],
    "dca-mt with every moving part": [
        *("method.name=dca-mt", "method.heads=1", "method.head_size=4", "method.teacher=both"),
        *("method.paste=0.6", "network.dropout=0.2"),
    ],
}
N = 7


class PowerCut(Exception):
    """Ends a training as nothing else would."""


@pytest.fixture(scope="module")
def ready(phantoms):
    """Prepared phantoms: plan, labelled and unlabelled cases."""
    full = read_dataset(phantoms)
    split = choose_split(full, phantoms / "splits.json", None, 0, 0.2)
    data = hide_labels(full, split)
    config = load_config(None, ["data.patch=[16,16,16]"])
    plan = survey(data, [case.name for case in data.cases], config.data).plan
    cases = {case.name: case for case in prepare(data.cases, plan)}
    return plan, [cases[n] for n in split.labeled], [cases[n] for n in split.unlabeled]


@pytest.fixture
def start(ready, tmp_path):
    """``start(run name, ...)`` trains a tiny method in the folder of that name."""
    plan, labelled, unlabelled = ready

    def begin(name, *settings, change=None, validate=None, resume=False):
        config = load_config(
            None,
            ["network.width=2", f"train.iterations={N}", "train.checkpoint_every=3", *settings],
        ).model_copy(update={"plan": plan})
        method = build_method(config)
        if change is not None:
            step = method.step
            method.step = lambda batch, at, update: change(step, method, batch, at, update)
        batches = Batches(
            labelled, unlabelled, plan.patch, config.train, config.seed, views=method.views
        )
        run = tmp_path / name
        run.mkdir(exist_ok=True)
        fabric = make_fabric("cpu", "32-true")
        train(method, batches, config.train, run, fabric, validate, resume=resume, quiet=True)
        return run

    return begin


def content(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def assert_equal(one, two):
    tensors, metadata = content(one)
    others, more = content(two)
    assert metadata == more
    assert list(tensors) == list(others)
    different = [name for name in tensors if not torch.equal(tensors[name], others[name])]
    assert not different


def rows(run):
    with (run / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cut_at(iteration):
    def change(step, method, batch, at, update):
        if at.iteration == iteration:
            raise PowerCut
        return step(batch, at, update)

    return change


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(start, method):
    settings = METHODS[method]
    whole = start("whole", *settings)
    # Before any checkpoint, right after one, and between two, where a method's state matters most.
    for at in (2, 3, 5) if method in {"vnet", "dca-mt"} else (5,):
        with pytest.raises(PowerCut):
            start(f"cut{at}", *settings, change=cut_at(at))
        again = start(f"cut{at}", *settings, resume=True)
        assert_equal(whole / "last.safetensors", again / "last.safetensors")
        expected, found = rows(whole), rows(again)
        assert [int(row["iteration"]) for row in found] == list(range(1, N + 1))
        for a, b in zip(expected, found, strict=True):
            assert {**a, "seconds": ""} == {**b, "seconds": ""}
        seconds = [float(row["seconds"]) for row in found]
        assert all(a <= b for a, b in pairwise(seconds))
    tensors, _ = content(whole / "last.safetensors")
    momentum = [t for name, t in tensors.items() if name.startswith("optimizer/")]
    assert momentum
    assert any(t.abs().max() > 0 for t in momentum)


def test_adam_is_saved_whole_and_keeps_its_rate(start):
    """Its two moments, its count of steps, and a rate that the protocol's decay leaves alone."""
    seen = []

    def watch(step, method, batch, at, update):
        rates = {n: o.param_groups[0]["lr"] for n, o in update.optimizers.items()}
        seen.append(rates)
        return step(batch, at, update)

    run = start("run", "method.name=sassnet", "train.iterations=4", "train.decay_at=[0.5]",
                change=watch)  # fmt: skip
    assert [r["network"] for r in seen] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert [r["discriminator"] for r in seen] == [1e-4] * 4
    tensors, _ = content(run / "last.safetensors")
    saved = {name: t for name, t in tensors.items() if "/discriminator/" in name}
    assert {name.rsplit("/")[-1] for name in saved} == {"step", "exp_avg", "exp_avg_sq"}
    assert all(t == 4 for name, t in saved.items() if name.endswith("/step"))


def test_cut_again_and_again(start):
    whole = start("whole", "method.name=vnet", "train.checkpoint_every=1")
    for at in (1, 2, 2, 4, 6):
        with pytest.raises(PowerCut):
            start("often", "method.name=vnet", "train.checkpoint_every=1", resume=True,
                  change=cut_at(at))  # fmt: skip
    again = start("often", "method.name=vnet", "train.checkpoint_every=1", resume=True)
    assert_equal(whole / "last.safetensors", again / "last.safetensors")
    assert [int(row["iteration"]) for row in rows(again)] == list(range(1, N + 1))


def test_rows_after_the_last_checkpoint_are_written_once(start):
    """The log runs ahead of the checkpoints; what is trained again is not logged twice."""
    settings = ("method.name=vnet", "train.iterations=25", "train.checkpoint_every=12")
    with pytest.raises(PowerCut):
        start("cut", *settings, change=cut_at(23))
    run = start("none", "method.name=vnet", "train.iterations=1").parent / "cut"
    assert len(rows(run)) > 12
    start("cut", *settings, resume=True)
    assert [int(row["iteration"]) for row in rows(run)] == list(range(1, 26))


def test_resuming_a_finished_run_changes_nothing(start):
    run = start("run", "method.name=vnet")
    before = (run / "last.safetensors").read_bytes(), (run / "log.csv").read_text()
    start("run", "method.name=vnet", resume=True)
    assert ((run / "last.safetensors").read_bytes(), (run / "log.csv").read_text()) == before


def test_the_seed_decides_weights_and_nothing_else_does(start):
    one, two = start("one", "method.name=vnet"), start("two", "method.name=vnet")
    other = start("other", "method.name=vnet", "seed=7")
    assert_equal(one / "last.safetensors", two / "last.safetensors")
    a, b = content(one / "last.safetensors")[0], content(other / "last.safetensors")[0]
    assert not torch.equal(a["network.head.weight"], b["network.head.weight"])


def test_worker_processes_change_nothing(start):
    one = start("one", "method.name=vnet", "train.iterations=3")
    two = start("two", "method.name=vnet", "train.iterations=3", "train.workers=1")
    assert_equal(one / "last.safetensors", two / "last.safetensors")


def test_training_reduces_the_loss(start):
    run = start("run", "method.name=vnet", "train.iterations=25", "train.decay_at=[]",
                "network.width=4")  # fmt: skip
    losses = [float(row["supervised"]) for row in rows(run)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_the_rate_falls_tenfold_at_each_mark():
    protocol = TrainConfig()
    rates = [learning_rate(protocol, i) for i in (0, 2499, 2500, 4999, 5000, 5999)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    short = TrainConfig(iterations=12)
    assert [learning_rate(short, i) for i in range(12)] == pytest.approx(
        [0.01] * 5 + [0.001] * 5 + [0.0001] * 2
    )


def test_the_rate_falls_as_a_polynomial_where_that_is_asked_for():
    train = TrainConfig(iterations=1000, learning_rate=0.01, decay="polynomial", power=0.9)
    rates = [learning_rate(train, i) for i in (0, 500, 999)]
    assert rates == pytest.approx([0.01, 0.01 * 0.5**0.9, 0.01 * 0.001**0.9])


def test_the_optimiser_is_given_the_rate(start):
    run = start("run", "method.name=vnet", "train.iterations=4", "train.decay_at=[0.5]",
                "train.learning_rate=0.02")  # fmt: skip
    assert [float(row["learning_rate"]) for row in rows(run)] == [0.02, 0.02, 0.002, 0.002]


def test_another_optimiser_keeps_its_rate_or_has_it_decay_alike():
    weight = [torch.nn.Parameter(torch.zeros(1))]
    falling = Adam([{"params": weight, "initial_lr": 3e-3}], lr=3e-3)
    own, sgd = Adam(weight, lr=2e-3), SGD(weight, lr=7.0)
    settings = TrainConfig(iterations=10, learning_rate=0.01, decay="polynomial")
    for iteration in (0, 5, 5):  # from the start, not from one another
        share = (1 - iteration / 10) ** 0.9
        given = {"a": falling, "b": own, "c": sgd}
        assert set_learning_rate(given, settings, iteration) == pytest.approx(3e-3 * share)
        assert falling.param_groups[0]["lr"] == pytest.approx(3e-3 * share)
        assert own.param_groups[0]["lr"] == 2e-3
        assert sgd.param_groups[0]["lr"] == pytest.approx(0.01 * share)


def test_the_log_shows_the_rate_that_trains(start):
    run = start("run", "method.name=crossmatch", "train.iterations=4", "train.decay_at=[0.5]")
    rates = [float(row["learning_rate"]) for row in rows(run)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_a_step_is_momentum_sgd_at_that_rate(start, ready):
    """The weights of a run without gradients shrink by weight decay alone."""

    def no_gradient(step, method, batch, at, update):
        loss = 0 * sum(p.sum() for p in method.parameters())
        update(loss)
        return {"nothing": loss}

    settings = ("method.name=vnet", "train.iterations=3", "train.decay_at=[0.67]",
                "train.weight_decay=0.5", "train.momentum=0.9",
                "train.learning_rate=0.1")  # fmt: skip
    run = start("run", *settings, change=no_gradient)
    weight, velocity = 1.0, 0.0
    for rate in (0.1, 0.1, 0.01):
        velocity = 0.9 * velocity + 0.5 * weight
        weight -= rate * velocity
    config = load_config(None, ["network.width=2", "method.name=vnet"])
    first = build_method(config.model_copy(update={"plan": ready[0]})).network.head.weight
    last = content(run / "last.safetensors")[0]["network.head.weight"]
    assert torch.allclose(last, weight * first.detach(), atol=1e-6)


def test_a_loss_that_is_not_finite_stops_with_its_cases(start):
    def poison(step, method, batch, at, update):
        terms = step(batch, at, update)
        return terms | {"broken": torch.tensor(math.nan if at.iteration == 4 else 1.0)}

    with pytest.raises(InputError) as caught:
        start("run", "method.name=vnet", change=poison)
    message = str(caught.value)
    assert "iteration 5" in message
    assert "broken" in message
    assert "nan" in message
    assert "phantom_" in message
    run = start("whole", "method.name=vnet", "train.iterations=3").parent / "run"
    tensors, metadata = content(run / "last.safetensors")
    assert '"iteration": 3' in metadata["state"]
    assert all(torch.isfinite(t.float()).all() for t in tensors.values())
    resumed = start("run", "method.name=vnet", resume=True)
    assert [int(row["iteration"]) for row in rows(resumed)] == list(range(1, N + 1))


def test_a_broken_network_never_becomes_the_best(start):
    def poison(step, method, batch, at, update):
        terms = step(batch, at, update)
        return {name: value * math.inf for name, value in terms.items()} if at.iteration else terms

    with pytest.raises(InputError, match="iteration 2"):
        start("run", "method.name=vnet", "train.validate_every=3", change=poison,
              validate=lambda method: 0.5)  # fmt: skip
    run = start("whole", "method.name=vnet", "train.iterations=1").parent / "run"
    assert not (run / "best.safetensors").exists()


def test_best_is_the_first_of_the_highest_scores(start):
    weights = {}
    scores = iter([0.2, 0.7, 0.7, 0.1])

    def validate(method):
        score = next(scores)
        weights[len(weights)] = method.network.head.weight.detach().clone()
        return score

    run = start("run", "method.name=vnet", "train.validate_every=2", validate=validate)
    found = [(int(r["iteration"]), r["val_dice"]) for r in rows(run)]
    assert found == [
        (1, ""), (2, "0.200000"), (3, ""), (4, "0.700000"), (5, ""), (6, "0.700000"),
        (7, "0.100000"),
    ]  # fmt: skip
    tensors, metadata = content(run / "best.safetensors")
    assert torch.equal(tensors["network.head.weight"], weights[1])
    assert '"iteration": 4' in metadata["state"]
    assert not [name for name in tensors if name.startswith("optimizer/")]


def test_best_survives_an_interruption(start):
    def scored(values):
        return lambda method: next(values)

    settings = ("method.name=vnet", "train.validate_every=2", "train.checkpoint_every=2")
    whole = start("whole", *settings, validate=scored(iter([0.2, 0.7, 0.6, 0.1])))
    with pytest.raises(PowerCut):
        start("cut", *settings, change=cut_at(5), validate=scored(iter([0.2, 0.7])))
    cut = start("cut", *settings, resume=True, validate=scored(iter([0.6, 0.1])))
    assert_equal(whole / "best.safetensors", cut / "best.safetensors")
    assert_equal(whole / "last.safetensors", cut / "last.safetensors")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_iteration_saves_and_leaves(start, number, code):
    def send(step, method, batch, at, update):
        if at.iteration == 3:
            os.kill(os.getpid(), number)
        return step(batch, at, update)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        start("run", "method.name=vnet", "train.checkpoint_every=1000", change=send)
    assert caught.value.exit_code == code
    assert "--resume" in str(caught.value)
    assert signal.getsignal(number) is before
    whole = start("whole", "method.name=vnet", "train.checkpoint_every=1000")
    run = whole.parent / "run"
    assert '"iteration": 4' in content(run / "last.safetensors")[1]["state"]
    assert len(rows(run)) == 4
    start("run", "method.name=vnet", "train.checkpoint_every=1000", resume=True)
    assert_equal(whole / "last.safetensors", run / "last.safetensors")


@pytest.mark.slow
def test_the_command_leaves_with_the_code_of_its_signal(phantoms, tmp_path, tiny):
    """SIGTERM, as a batch system sends it: exit code 143; then Ctrl-C on the resumed run: 130."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "dcamt.cli", "train", phantoms, "--out", run, "--resume",
               "--splits", phantoms / "splits.json", "--method", "vnet", "--quiet"]  # fmt: skip
    changes = [s for s in tiny if not s.startswith("method.")]
    changes += ["train.iterations=1000000", "train.checkpoint_every=5"]
    iterations = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            [*map(str, command), *(part for s in changes for part in ("--set", s))],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not saved_after(run, iterations):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == code
        assert "Traceback" not in errors
        assert "--resume" in errors
        done = len(rows(run))
        assert done > iterations
        assert f'"iteration": {done}' in content(run / "last.safetensors")[1]["state"]
        iterations = done


@pytest.mark.slow
def test_several_processes_save_and_leave_together(phantoms, tmp_path, tiny):
    """SIGTERM to the command alone, as `timeout` sends it; nobody stays behind."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "dcamt.cli", "train", phantoms, "--out", run, "--resume",
               "--splits", phantoms / "splits.json", "--method", "vnet", "--quiet"]  # fmt: skip
    changes = [s for s in tiny if not s.startswith("method.")]
    changes += ["train.devices=2", "train.iterations=1000", "train.checkpoint_every=1000"]
    process = subprocess.Popen(
        [*map(str, command), *(part for s in changes for part in ("--set", s))],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not (run / "log.csv").exists() or len(rows(run)) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    done = len(rows(run))
    assert done % 10 == 0
    assert f'"iteration": {done}' in content(run / "last.safetensors")[1]["state"]
    with pytest.raises(ProcessLookupError):
        for _ in range(1000):  # Python's own helper process takes a moment to follow
            os.killpg(process.pid, 0)
            time.sleep(0.01)


def test_processes_leave_together_every_tenth_iteration():
    def reduced(mine, reduce_op):
        assert reduce_op == "max"
        return torch.maximum(mine, torch.tensor(signal.SIGTERM))

    two = SimpleNamespace(world_size=2, device="cpu", all_reduce=reduced)
    assert [is_stopped([], two, done) for done in (1, 9, 10, 11)] == [0, 0, signal.SIGTERM, 0]
    one = SimpleNamespace(world_size=1)
    assert [is_stopped(seen, one, 1) for seen in ([], [2, 15])] == [0, 2]


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_without_bfloat16_units_computes_in_float32(monkeypatch, native, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_device("auto", "auto") == ("cuda", precision)
    assert choose_device("cpu", "auto") == ("cpu", "32-true")
    with pytest.raises(InputError, match=r"train\.devices = 2: PyTorch sees 1 GPU"):
        choose_device("cuda", "auto", 2)


def test_gradients_are_not_computed_in_the_types_of_the_forward_pass():
    torch.manual_seed(0)
    x = torch.randn(8, 16, requires_grad=True)
    (expected,) = torch.autograd.grad(squared_distances(x, x).square().sum(), x)
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
    with fabric.autocast():
        Update(fabric, {})(squared_distances(x, x).square().sum())
    torch.testing.assert_close(x.grad, expected)


def signal_workers(number, *others):
    """Another process sends ``number`` to this training's only worker, and to ``others``."""
    (worker,) = multiprocessing.active_children()
    pids = map(str, (worker.pid, *others))
    subprocess.run([sys.executable, "-c", f"import os, sys\nfor pid in sys.argv[1:]: "
                    f"os.kill(int(pid), {int(number)})", *pids], check=True)  # fmt: skip
    time.sleep(0.5)  # a process takes a moment to end


def test_a_worker_that_dies_ends_the_training_with_a_sentence(start):
    def kill(step, method, batch, at, update):
        if at.iteration == 4:
            signal_workers(signal.SIGKILL)
        return step(batch, at, update)

    settings = ("method.name=vnet", "train.iterations=12", "train.workers=1")
    with pytest.raises(InputError, match=r"worker process died.*--resume") as caught:
        start("run", *settings, change=kill)
    assert "\n" not in str(caught.value)
    whole = start("whole", *settings)
    assert '"iteration": 3' in content(whole.parent / "run" / "last.safetensors")[1]["state"]
    start("run", *settings, resume=True)
    assert_equal(whole / "last.safetensors", whole.parent / "run" / "last.safetensors")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_workers_too_leaves_time_to_save(start, number):
    """Ctrl-C in a terminal and most batch systems signal every process of a run."""

    def send(step, method, batch, at, update):
        if at.iteration == 4:
            signal_workers(number, os.getpid())
        return step(batch, at, update)

    settings = ("method.name=vnet", "train.iterations=12", "train.workers=1")
    with pytest.raises(Interrupted):
        start("run", *settings, change=send)
    run = start("whole", "method.name=vnet", "train.iterations=1").parent / "run"
    assert '"iteration": 5' in content(run / "last.safetensors")[1]["state"]


def test_an_error_in_a_worker_is_one_sentence(ready, tmp_path):
    plan, labelled, unlabelled = ready
    gone = [replace(case, image_path=tmp_path / "gone.npy") for case in labelled]
    config = load_config(None, ["network.width=2", "method.name=vnet", "train.workers=1"])
    config = config.model_copy(update={"plan": plan})
    batches = Batches(gone, unlabelled, plan.patch, config.train, 0)
    fabric = make_fabric("cpu", "32-true")
    with pytest.raises(InputError, match=r"worker could not read.*gone\.npy") as caught:
        train(build_method(config), batches, config.train, tmp_path, fabric, None, quiet=True)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()  # though the error is kept, and its frames


def saved_after(run, iterations):
    path = run / "last.safetensors"
    return path.exists() and f'"iteration": {iterations},' not in content(path)[1]["state"]


def test_a_checkpoint_obeys_the_umask(start):
    run = start("run", "method.name=vnet", "train.iterations=1")
    modes = {stat.S_IMODE((run / n).stat().st_mode) for n in ("last.safetensors", "log.csv")}
    assert len(modes) == 1


def broken_checkpoints():
    return {
        "missing": lambda path, good: None,
        "empty": lambda path, good: path.write_bytes(b""),
        "cut": lambda path, good: path.write_bytes(good.read_bytes()[:-100]),
        "a pickle": lambda path, good: torch.save({"a": 1}, path),
        "of another program": lambda path, good: save_file({"a": torch.ones(2)}, path),
        "of another kind": lambda path, good: save_file(
            content(good)[0], path, {"kind": "other", "state": "{}"}
        ),
    }


@pytest.mark.parametrize("how", broken_checkpoints())
def test_a_checkpoint_that_is_not_ours_is_refused(start, ready, tmp_path, how):
    good = start("run", "method.name=vnet", "train.iterations=1") / "last.safetensors"
    path = tmp_path / "other.safetensors"
    broken_checkpoints()[how](path, good)
    config = load_config(None, ["network.width=2", "method.name=vnet"])
    method = build_method(config.model_copy(update={"plan": ready[0]}))
    with pytest.raises(InputError, match=r"other\.safetensors"):
        checkpoint.load(path, method)


@pytest.mark.parametrize("settings", [["network.width=4"], ["method.name=mean-teacher"]])
def test_a_checkpoint_of_another_network_is_refused(start, ready, settings):
    good = start("run", "method.name=vnet", "train.iterations=1") / "last.safetensors"
    config = load_config(None, ["network.width=2", "method.name=vnet", *settings])
    method = build_method(config.model_copy(update={"plan": ready[0]}))
    with pytest.raises(InputError, match="does not fit"):
        checkpoint.load(good, method)
