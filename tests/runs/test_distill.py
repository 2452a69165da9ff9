"""``dcamt distill``: a run teaches a light network, which then stands alone."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dcamt import api
from dcamt.engine import checkpoint
from dcamt.errors import InputError
from dcamt.records.run_folder import read_config
from dcamt.runs import train as training

WIDTH = "network.width=1"


@pytest.fixture(scope="module")
def light(tiny_run, tmp_path_factory, cache):
    """What the pair of ``tiny_run`` taught to a light V-Net of width 1; read only."""
    out = tmp_path_factory.mktemp("distilled") / "light"
    return api.distill(tiny_run, out, set=[WIDTH], device="cpu", quiet=True)


@pytest.fixture
def distilled(tiny_run, tmp_path):
    """``distilled(name, ...)`` teaches a light V-Net of width 1 by the pair of ``tiny_run``."""

    def run(name="light", teacher=tiny_run, changes=(WIDTH,), **options):
        return api.distill(
            teacher, tmp_path / name, set=changes, **{"quiet": True, "device": "cpu"} | options
        )

    return run


@pytest.fixture
def teacher(tiny_run, tmp_path):
    """A copy of ``tiny_run``, to change."""
    return shutil.copytree(tiny_run, tmp_path / "teacher")


@pytest.fixture
def data(phantoms, tmp_path):
    """A copy of the phantoms, to change files of."""
    return shutil.copytree(phantoms, tmp_path / "data")


def assert_same(one, two):
    a, b = (load_file(run / "last.safetensors") for run in (one, two))
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def weights_of(run):
    return {k for k in load_file(run / "last.safetensors") if not k.startswith("optimizer/")}


def test_it_leaves_an_ordinary_run_of_the_light_network_alone(light, tiny_run):
    names = {path.name for path in light.iterdir()}
    assert names == {path.name for path in tiny_run.iterdir()}
    own, pair = read_config(light), read_config(tiny_run)
    assert (own.plan, own.dataset, own.train) == (pair.plan, pair.dataset, pair.train)
    assert (pair.network.name, own.network.name, own.network.width) == ("vnet", "light-vnet", 1)
    options = {"temperature": 1.0, "supervised": 0.0, "learning_rate": 0.002}
    assert own.method.model_dump() == {"name": "distilled", **options}
    assert (light / "split.json").read_text() == (tiny_run / "split.json").read_text()
    assert all(name.startswith("network.") for name in weights_of(light))
    with (light / "log.csv").open(newline="") as file:
        assert all(float(row["taught"]) > 0 for row in csv.DictReader(file))
    scored = [json.loads((r / "validation.json").read_text())["cases"] for r in (light, tiny_run)]
    assert [row["case"] for row in scored[0]] == [row["case"] for row in scored[1]]


def test_it_needs_its_teacher_no_more(light, phantoms, tmp_path, monkeypatch):
    def gone(*given):
        raise AssertionError("the teacher was asked for")

    monkeypatch.setattr(training, "taught_by", gone)
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    api.predict(light, scan, tmp_path / "own.nii.gz", quiet=True)
    (file,) = api.export(light, tmp_path / "exported")
    assert set(load_file(file)) == weights_of(light)
    api.predict(tmp_path / "exported", scan, tmp_path / "exported.nii.gz", quiet=True)
    cost = api.cost("distilled", (16, 16, 16), width=1)
    assert cost["parameters"] == api.cost("vnet", (16, 16, 16), width=1)["parameters"]


def test_the_run_tells_who_taught_it(light, tiny_run):
    kept = json.loads((light / "versions.json").read_text())["teacher"]
    assert kept.startswith("dca-mt sha256:")
    assert kept in (light / "report.html").read_text()
    assert f"| taught by | {kept} |" in api.card(light)
    assert "taught by" not in api.card(tiny_run)


def test_every_scan_of_training_teaches_and_no_hidden_label_is_opened(
    data, tmp_path, tiny, monkeypatch
):
    lists = json.loads((data / "splits.json").read_text())
    pair = api.train(data, tmp_path / "pair", splits=data / "splits.json", set=tiny, quiet=True)
    for name in lists["unlabeled"]:
        (data / "labelsTr" / f"{name}.nii.gz").write_bytes(b"spoilt")
    streams = []

    class Noted(training.Batches):
        def __init__(self, labeled, unlabeled, *given):
            streams.append(({c.name for c in labeled}, {c.name for c in unlabeled}))
            super().__init__(labeled, unlabeled, *given)

    monkeypatch.setattr(training, "Batches", Noted)
    api.distill(pair, tmp_path / "light", set=[WIDTH], quiet=True)
    assert streams == [({*lists["labeled"]}, {*lists["labeled"], *lists["unlabeled"]})]


class PowerCut(Exception):
    pass


@pytest.fixture
def cut(monkeypatch, distilled):
    """``cut(iteration, name, ...)``: a distillation that ends before that iteration."""
    build = training.build_method

    def run(iteration, name, **options):
        def broken(config):
            method = build(config)
            step = method.step

            def at(batch, progress, update):
                if progress.iteration == iteration:
                    raise PowerCut
                return step(batch, progress, update)

            method.step = at
            return method

        with monkeypatch.context() as patch:
            patch.setattr(training, "build_method", broken)
            with pytest.raises(PowerCut):
                distilled(name, **options)

    return run


def test_cut_and_resumed_it_ends_with_the_same_weights(distilled, cut):
    whole = distilled("whole", seed=1)
    cut(2, "cut", seed=1)
    assert_same(whole, distilled("cut", seed=1, resume=True))


def test_it_goes_on_with_its_own_teacher_only(distilled, cut, teacher, cli):
    cut(2, "cut", teacher=teacher)
    weights = teacher / "last.safetensors"
    kept = weights.read_bytes()
    _, method = training.load_run(teacher)
    next(method.parameters()).data[0] += 1
    checkpoint.save(weights, method, {}, {"iteration": 3, "best": None})
    with pytest.raises(InputError, match="begun with another teacher"):
        distilled("cut", teacher=teacher, resume=True)
    weights.write_bytes(kept)
    text = (teacher / "config.yaml").read_text()
    (teacher / "config.yaml").write_text(text.replace("scheme: zscore", "scheme: minmax"))
    with pytest.raises(InputError, match="begun with another teacher"):
        distilled("cut", teacher=teacher, resume=True)
    (teacher / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"begun with network\.width = 1, not 2"):
        distilled("cut", teacher=teacher, resume=True, changes=["network.width=2"])
    run = distilled("cut", teacher=teacher, resume=True, changes=())
    code, _, err = cli("train", read_config(run).dataset, "--out", run, "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert "was begun with `dcamt distill`" in err
    with pytest.raises(InputError, match=r"begun with method\.name = dca-mt, not distilled"):
        api.distill(run, teacher, resume=True)


def test_the_network_is_half_as_wide_unless_one_is_named(distilled):
    assert read_config(distilled("half", changes=(), iterations=1)).network.width == 1
    changes = [
        "network.name=segresnet",
        "network.width=8",
        "method.temperature=2",
        "train.decay=polynomial",
    ]
    config = read_config(distilled("other", changes=changes, seed=7, iterations=1))
    assert (config.network.name, config.network.width) == ("segresnet", 8)
    options = {"temperature": 2.0, "supervised": 0.0, "learning_rate": 0.002}
    assert config.method.options == options
    assert (config.train.decay, config.train.iterations, config.seed) == ("polynomial", 1, 7)


@pytest.mark.parametrize("method", ["vnet", "sassnet"])
def test_any_method_can_teach(distilled, phantoms, tmp_path, tiny, method):
    settings = [s for s in tiny if not s.startswith("method.")]
    out, splits = tmp_path / "teacher", phantoms / "splits.json"
    api.train(phantoms, out, method=method, splits=splits, set=settings, quiet=True)
    versions = json.loads((distilled(teacher=out) / "versions.json").read_text())
    assert versions["teacher"].startswith(f"{method} sha256:")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "data.spacing=[2,2,2]"), "data set, split and plan are those of"),
        (("--set", "plan.patch=[32,32,32]"), "data set, split and plan are those of"),
        (("--set", "method.name=vnet"), "distill has its own method"),
        (("--set", "method.heads=2"), "unknown key 'heads'"),
        (("--set", "network.name=net"), "'net' is unknown"),
        (("--set", "train.iterations=0"), "train.iterations = 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(cli, tiny_run, tmp_path, options, words):
    out = tmp_path / "out"
    code, _, err = cli("distill", tiny_run, "--out", out, *options)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err
    assert not out.exists()


def test_what_cannot_teach_is_one_sentence(cli, tiny_run, phantoms, tmp_path, tiny):
    out = tmp_path / "out"
    api.export(tiny_run, tmp_path / "exported")
    settings = [s for s in tiny if not s.startswith("method.")]
    pre = api.pretrain(phantoms, tmp_path / "pre", set=settings, quiet=True)
    for run, words in (
        (tmp_path / "exported", "names no data set, as it is exported"),
        (pre, "which segment nothing"),
        (phantoms, "is not a run folder"),
    ):
        code, _, err = cli("distill", run, "--out", out)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
    inside = phantoms / "imagesTr" / "light"
    code, _, err = cli("distill", tiny_run, "--out", inside)
    assert (code, err.count("\n")) == (2, 1)
    assert not out.exists()
    assert not inside.exists()


def test_no_other_command_trains_it(cli, phantoms, tmp_path):
    out = tmp_path / "out"
    for command in (
        ("train", phantoms, "--out", out, "--method", "distilled"),
        ("compare", phantoms, "--out", out, "--methods", "vnet,distilled"),
        ("cost", "--methods", "distilled"),
    ):
        code, _, err = cli(*command)
        assert (code, err.count("\n")) == (2, 1)
        assert "is for `dcamt distill`" in err
    assert not out.exists()
