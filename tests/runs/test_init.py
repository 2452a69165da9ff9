"""``--init``: trainings that start from the weights of others, whole runs of them."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcamt import api
from dcamt.data.split import Split
from dcamt.errors import InputError
from dcamt.records.run_folder import read_config
from dcamt.runs import train as training
from dcamt.runs.init import told_of_start

STILL = ("train.learning_rate=1e-30", "train.weight_decay=0", "train.iterations=1")
"""A training that leaves weights (but for the statistics of batch norm) as they were."""


@pytest.fixture
def settings(tiny):
    return [s for s in tiny if not s.startswith("method.")]


@pytest.fixture
def trained(phantoms, tmp_path, settings):
    """``trained(name, init=...)`` trains a V-Net on phantoms and returns the run folder."""

    def run(name="run", changes=(), **options):
        options = {"splits": phantoms / "splits.json", "quiet": True, "method": "vnet"} | options
        return api.train(phantoms, tmp_path / name, set=[*settings, *changes], **options)

    return run


@pytest.fixture(scope="module")
def pretrained(phantoms, tmp_path_factory, tiny, cache):
    out = tmp_path_factory.mktemp("pre") / "users-own-folder"
    return api.pretrain(phantoms, out, splits=phantoms / "splits.json", quiet=True,
                        set=[s for s in tiny if not s.startswith("method.")])  # fmt: skip


def kernels(run):
    found = load_file(run / "last.safetensors")
    return {k: v for k, v in found.items() if v.ndim == 5 and not k.startswith("optimizer/")}


def assert_same(one, two):
    a, b = (load_file(run / "last.safetensors") for run in (one, two))
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def record(run):
    return json.loads((run / "versions.json").read_text()).get("init")


@pytest.mark.parametrize(
    "kind",
    [
        "folder",
        "file",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("link", "exported", "part")),
    ],
)
def test_weights_come_from_whatever_dcamt_wrote(trained, tmp_path, kind):
    first = trained("first")
    given, expected = first, kernels(first)
    if kind == "file":
        given = shutil.copy(first / "last.safetensors", tmp_path / "some-name.bin")
    elif kind == "link":
        given = tmp_path / "link"
        given.symlink_to(first)
    elif kind != "folder":
        parts = api.export(first, tmp_path / "exported", megabytes=0.16)
        assert len(parts) > 1
        given = parts[1] if kind == "part" else tmp_path / "exported"
        expected = {k: v.half().float() for k, v in expected.items()}
    found = kernels(trained("second", init=str(given), seed=3, changes=STILL))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)


def test_the_run_tells_what_it_started_from(trained, pretrained, capsys, tmp_path):
    run = trained(init=pretrained, quiet=False)
    told = capsys.readouterr().err.splitlines()[0]
    assert told == (
        "starts from last.safetensors: 174 tensors taken, 2 drawn at random (network.head.weight, "
        "network.head.bias)"
    )
    digest = hashlib.sha256((pretrained / "last.safetensors").read_bytes()).hexdigest()
    assert record(run) == f"last.safetensors sha256:{digest}"
    api.export(run, tmp_path / "out")
    for text in (
        (run / "report.html").read_text(),
        api.card(run),
        (tmp_path / "out" / "versions.json").read_text(),
    ):
        assert digest in text
        assert pretrained.name not in text
    assert "random weights" in api.card(trained("random"))
    with pytest.raises(InputError, match=r"differs from .* in more than the seed"):
        api.card([run, tmp_path / "random"])


def test_the_same_seed_ends_with_the_same_weights(trained, pretrained):
    one, two = (trained(name, method="dca-mt", init=pretrained) for name in "ab")
    assert_same(one, two)
    other = trained("c", method="dca-mt", init=pretrained, seed=1)
    a, b = kernels(one), kernels(other)
    assert any(not torch.equal(a[name], b[name]) for name in a)


class PowerCut(Exception):
    pass


@pytest.fixture
def cut(monkeypatch, trained):
    """``cut(iteration, name, ...)``: a training that ends before that iteration."""
    build = training.build_method

    def run(iteration, *given, **options):
        def broken(config):
            method = build(config)
            step = method.step

            def until(batch, at, update):
                if at.iteration == iteration:
                    raise PowerCut
                return step(batch, at, update)

            method.step = until
            return method

        with monkeypatch.context() as patch:
            patch.setattr(training, "build_method", broken)
            with pytest.raises(PowerCut):
                trained(*given, **options)

    return run


def test_it_is_resumed_with_or_without_naming_the_start(trained, cut, pretrained, tmp_path):
    whole = trained("whole", init=pretrained)
    cut(2, "cut", init=pretrained)
    cut(2, "again", init=pretrained)
    assert_same(whole, trained("cut", resume=True))
    moved = shutil.copytree(pretrained, tmp_path / "moved")
    assert_same(whole, trained("again", resume=True, init=moved))


def test_before_the_first_checkpoint_the_start_is_named_again(trained, cut, pretrained):
    whole = trained("whole", init=pretrained)
    cut(0, "cut", init=pretrained)
    with pytest.raises(InputError, match=r"begun with --init \(last\.safetensors .* give it again"):
        trained("cut", resume=True)
    assert_same(whole, trained("cut", resume=True, init=pretrained))


def test_another_start_is_refused(trained, pretrained):
    with_init, without = trained("with", init=pretrained), trained("without")
    for run, other, words in (
        (with_init, without, "begun with --init"),
        (without, with_init, "begun without --init"),
    ):
        before = (run / "last.safetensors").read_bytes()
        with pytest.raises(InputError, match=words):
            trained(run.name, resume=True, init=other)
        assert (run / "last.safetensors").read_bytes() == before


def damaged(path, kind, source):
    content = (source / "last.safetensors").read_bytes()
    if kind == "cut":
        path.write_bytes(content[:-100])
    elif kind == "text":
        path.write_text("weights")
    elif kind == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "nan":
        tensors = load_file(source / "last.safetensors")
        tensors["network.encoder.0.0.0.weight"][:] = torch.nan
        save_file(tensors, path, {"kind": "dcamt checkpoint 1", "state": "{}"})
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut", "not a readable safetensors"),
        ("text", "not a readable safetensors"),
        ("nothing", "is missing"),
        ("folder", "is missing"),
        ("foreign", "not a dcamt checkpoint"),
        ("nan", "it is damaged"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    cli, phantoms, pretrained, tmp_path, tiny, kind, words
):
    path, out = damaged(tmp_path / "w.safetensors", kind, pretrained), tmp_path / "run"
    options = [part for s in tiny for part in ("--set", s)]
    code, _, err = cli("train", phantoms, "--out", out, "--init", path, *options)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err
    assert not out.exists()


@pytest.mark.parametrize("text", ["[]", "{", '{"labeled": 5, "unlabeled": [[], {}, null]}'])
def test_a_split_beside_the_weights_may_hold_anything(pretrained, tmp_path, text):
    shutil.copy(pretrained / "last.safetensors", tmp_path)
    (tmp_path / "split.json").write_text(text)
    config = read_config(pretrained)
    told = told_of_start(tmp_path / "last.safetensors", config, Split(("a",), (), ("b",)))
    assert told == ["starts from last.safetensors: 176 tensors taken"]


def test_another_backbone_is_one_sentence(cli, phantoms, pretrained, tmp_path, tiny):
    options = [part for s in tiny for part in ("--set", s)]
    for other in ("network.width=4", "network.name=segresnet"):
        width = ("--set", "network.width=8") if "seg" in other else ()
        code, _, err = cli("train", phantoms, "--out", tmp_path / "run", "--init", pretrained,
                           *options, *width, "--set", other)  # fmt: skip
        assert (code, err.count("\n")) == (2, 1)
        assert "of another backbone or width" in err
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_comparison_starts_every_run_from_it(cli, phantoms, pretrained, tmp_path, settings):
    out = tmp_path / "out"
    command = ["compare", phantoms, "--out", out, "--methods", "vnet", "--seeds", "1",
               "--splits", phantoms / "splits.json", "--quiet", "--jobs", "1",
               *(part for s in settings for part in ("--set", s))]  # fmt: skip
    assert cli(*command, "--init", pretrained / "last.safetensors")[0] == 0
    (run,) = (out / "runs").iterdir()
    assert record(run).startswith("last.safetensors sha256:")
    assert cli(*command, "--init", pretrained)[0] == 0
    code, _, err = cli(*command)
    assert (code, err.count("\n")) == (2, 1)
    assert "was begun with --init" in err
    code, _, err = cli(*command, "--init", run)
    assert code == 2
    assert "was begun with --init" in err
