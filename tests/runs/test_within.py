"""A training that is sized for the time there is.

How fast a machine is stands for itself here: so many multiply-accumulates a second. One training is
timed and run for real.
"""

import json
from math import prod

import pytest

from dcamt import api
from dcamt.config import load_config
from dcamt.data.phantom import write_phantoms
from dcamt.errors import InputError
from dcamt.methods import METHODS
from dcamt.records.run_folder import read_config
from dcamt.runs import within
from dcamt.runs.complexity import with_plan
from dcamt.runs.plan import plan_run
from dcamt.runs.timing import measure_iteration
from dcamt.runs.within import ENOUGH, MOST, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5 h", 5400), ("45 min", 2700), ("3m", 180)],
)
def test_a_duration_is_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "0m", "two hours", "1.2.3h", "30s", "9e9h"])
def test_anything_else_is_no_duration(text):
    with pytest.raises(InputError, match="write it as 2h, 90m or 1h30m"):
        parse_duration(text)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("larger") / "data"
    write_phantoms(root, 5, (96, 80, 64), seed=1, labeled=2, val=1)
    return root


@pytest.fixture
def sized(monkeypatch, scans):
    """``sized(seconds, speed, ...)``: the plan on a machine that does ``speed`` work a second."""

    def plan(seconds, speed, *settings):
        monkeypatch.setattr(within.time, "monotonic", lambda: 0.0)
        monkeypatch.setattr(
            within, "measure_iteration", lambda config: (within._work(config) / speed, 0.0)
        )
        config = load_config(None, ["method.name=vnet", *settings])
        return plan_run(scans, config, scans / "splits.json", None, seconds)

    return plan


@pytest.fixture
def smallest(sized, monkeypatch):
    """Work of an iteration of the smallest size."""
    with monkeypatch.context() as patch:
        patch.setattr(within, "LADDER", within.LADDER[:1])
        return work(sized(1e9, 1e12))


def work(planned):
    return within._work(planned.config)


@pytest.mark.slow
def test_a_faster_machine_trains_more(sized, smallest):
    speeds = (0.1, 0.5, 1, 4, 16, 64, 256, 1e6)
    found = [sized(3600, smallest * speed) for speed in speeds]
    amounts = [work(planned) for planned in found]
    assert amounts == sorted(amounts) and len(set(amounts)) >= 4
    for planned, speed in zip(found, speeds, strict=True):
        train = planned.config.train
        assert train.iterations * work(planned) / (smallest * speed) <= 0.85 * 3600
        assert train.iterations >= ENOUGH or work(planned) == smallest
        assert train.iterations <= MOST and train.validate_every == 0
    rich, poor = found[-1].config, found[0].config
    assert (rich.network.width, rich.train.labeled_batch) == (16, 4)
    assert poor.network.width == 8 and prod(poor.plan.patch) < prod(rich.plan.patch)
    assert min(poor.plan.spacing) > min(rich.plan.spacing)
    assert rich.train.iterations == MOST


def test_why_is_said(sized, smallest):
    (why,) = [note for note in sized(3600, smallest).notes if note.startswith("--within")]
    assert "network of width 8" in why and "the next larger plan takes" in why
    (why,) = [note for note in sized(3600, 1e9 * smallest).notes if note.startswith("--within")]
    assert "next larger" not in why


def test_what_is_set_stays(sized):
    settings = (
        "train.iterations=300", "data.patch=[32,32,16]", "data.spacing=[1.5,1.5,1.5]",
        "network.width=4", "train.labeled_batch=3", "train.validate_every=50",
    )  # fmt: skip
    for speed in (1e9, 1e12):
        config = sized(3600, speed, *settings).config
        assert config.train.iterations <= 300 and config.train.validate_every == 50
        assert config.plan.patch == (32, 32, 16) and config.plan.spacing == (1.5, 1.5, 1.5)
        assert config.network.width == 4 and config.train.labeled_batch == 3
    assert config.train.iterations == 300


def test_too_little_time_is_refused_with_what_it_takes(sized, smallest):
    with pytest.raises(InputError, match="100 iterations of the smallest plan take 3 min"):
        sized(100, smallest / 1.5)


@pytest.mark.parametrize("error", [MemoryError(), InputError("does not fit")])
def test_a_size_that_no_memory_holds_is_passed_over(error, scans, monkeypatch):
    def measured(config):
        if config.network.width == 16:
            raise error
        return 1e-3, 0.0

    monkeypatch.setattr(within, "measure_iteration", measured)
    config = load_config(None, ["method.name=vnet"])
    until = within.time.monotonic() + 3600
    planned = plan_run(scans, config, scans / "splits.json", None, until)
    assert planned.config.network.width == 8


@pytest.mark.parametrize(("method", "labeled", "unlabeled"), [("vnet", 3, 1), ("bcp", 4, 5)])
def test_what_is_timed_has_the_batch_that_will_train(method, labeled, unlabeled, monkeypatch):
    seen = []
    kind = METHODS[method]
    step = kind.step

    def look(self, batch, at, update):
        seen.append((len(batch.image_l), len(batch.image_u), len(batch.inside_u)))
        return step(self, batch, at, update)

    monkeypatch.setattr(kind, "step", look)
    settings = [f"method.name={method}", f"train.labeled_batch={labeled}"]
    settings += [f"train.unlabeled_batch={unlabeled}", "network.width=2", "device=cpu"]
    config = with_plan(load_config(None, settings), (32, 16, 16), 1, 2, None)
    iteration, window = measure_iteration(config)
    assert set(seen) == {(labeled, unlabeled, unlabeled)}
    assert iteration > 0 and window > 0


def test_a_training_is_timed_and_run_for_real(phantoms, tmp_path, tiny):
    options = {"splits": phantoms / "splits.json", "set": [*tiny, "train.iterations=3"]}
    run = api.train(phantoms, tmp_path / "run", within="30m", quiet=True, **options)
    assert read_config(run).train.iterations == 3
    chosen = json.loads((run / "data.json").read_text())["chosen"]
    assert any(note.startswith("--within: 3 iterations") for note in chosen)
    # A run that goes on keeps its size, however much time there is.
    again = api.train(phantoms, run, within="1m", resume=True, quiet=True, **options)
    assert read_config(again).train.iterations == 3
