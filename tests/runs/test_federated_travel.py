"""What becomes of the weights of a federation on their way: bounds and noise, float16, parts."""

import csv
import json
import shutil
import stat

import pytest
import torch
from safetensors.torch import load_file

from dcamt import api
from dcamt.config import load_config
from dcamt.engine.signals import Interrupted
from dcamt.federation import part_of
from dcamt.methods import METHODS
from dcamt.records.run_folder import RunConfig, read_config
from dcamt.runs import federate as federation
from dcamt.runs.build import build_method, resolve_method, resolve_network
from dcamt.runs.half import halved, restored, rounded


@pytest.fixture
def federated(hospitals, settings, tmp_path):
    """``federated(name, ...)`` trains north and south, in rounds of one iteration."""

    def make(name, *changes, **options):
        folders = [hospitals / "north", hospitals / "south"]
        options = {"rounds": 1, "iterations": 1, "quiet": True} | options
        return api.federate(folders, tmp_path / name, set=[*settings, *changes], **options)

    return make


@pytest.fixture
def travelled(monkeypatch):
    """What each site got and sent, in order."""
    train, seen = federation.train_round, []

    def watched(site, shared, *given):
        sent = train(site, shared, *given)
        seen.append((dict(shared), sent))
        return sent

    monkeypatch.setattr(federation, "train_round", watched)
    return seen


def weights(folder):
    found = load_file(folder / "last.safetensors")
    return {name: value for name, value in found.items() if not name.startswith("optimizer/")}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


QUICK = "method.components=base"
PRIVATE = "network.name=segresnet", "network.width=8", QUICK


def test_sites_with_a_bound_count_alike_tell_no_losses_and_hide_in_noise(
    federated, travelled, capsys
):
    run = federated("run", *PRIVATE, clip=1e-3, noise=0.5, quiet=False)
    (start, north), (_, south) = travelled
    for sent in (north, south):
        assert (sent.cases, sent.losses) == (1, {})
        change = torch.cat([(sent.weights[n].double() - v).flatten() for n, v in start.items()])
        assert change.norm() == pytest.approx(1e-3, rel=1e-3)
    noise = torch.cat([
        (v.double() - (north.weights[n].double() + south.weights[n]) / 2).flatten()
        for n, v in weights(run).items()
    ])  # fmt: skip
    assert noise.std() == pytest.approx(0.5 * 1e-3 / 2, rel=0.02)
    with (run / "log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["iteration", "seconds", "learning_rate", "val_dice"]
    told = "fedavg, 1 x 1 iterations, clip 0.001 and noise 0.5 (epsilon 10.00 at delta 1e-05)"
    assert json.loads((run / "versions.json").read_text())["federation"].startswith(told)
    assert "each site in the weights: epsilon 10.00 at delta 1e-05;" in capsys.readouterr().err
    assert told in api.card(run)
    assert told in api.report(run).read_text()
    assert not (run / "noise.secret").exists()  # with it the noise could be taken away


def test_a_run_that_goes_on_gets_the_noise_that_it_would_have_had(
    federated, travelled, monkeypatch, tmp_path
):
    train = federation.train_round

    def stopped(*given):
        if len(travelled) == 3:
            raise Interrupted(15)
        return train(*given)

    private = {"rounds": 2, "clip": 0.01, "noise": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr(federation, "train_round", stopped)
        with pytest.raises(Interrupted):
            federated("one", *PRIVATE, **private)
    secret = tmp_path / "one" / "noise.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_text() not in (tmp_path / "one" / "config.yaml").read_text()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (
        weights(federated(name, *PRIVATE, resume=True, **private)) for name in ("one", "two")
    )
    assert same(one, two)


def test_half_precision_keeps_eleven_bits_of_any_weight():
    sent = {
        "large": torch.tensor([1e6, -3.3e38, 17.0]),
        "small": torch.tensor([[3e-8, -1e-9], [2e-9, 4.7e-8]]),
        "carried": torch.tensor([0.99999, 0.3]),  # is rounded up to 1
        "zero": torch.zeros(3),
        "scalar": torch.tensor(-2.7),
        "steps": torch.tensor(123_456_789),
        "random": 500 * torch.randn(1000, generator=torch.Generator().manual_seed(0)),
    }
    packed = halved(sent)
    assert {packed[name].dtype for name in sent} == {torch.float16, torch.int64}
    assert all(value.isfinite().all() for value in packed.values())
    found = restored(packed)
    assert found.keys() == sent.keys()
    assert torch.equal(found["steps"], sent["steps"])
    for name in sent.keys() - {"steps"}:
        top = float(sent[name].abs().max())
        torch.testing.assert_close(found[name], sent[name], rtol=2**-11, atol=top * 2**-39)
    assert same(rounded(found), found)  # a second way changes nothing more


def test_weights_that_travel_in_half_precision_are_rounded_in_both_directions(federated, travelled):
    run = federated("run", QUICK, rounds=2, half=True)
    for shared, sent in travelled:
        assert same(rounded(shared), shared)
        assert same(rounded(sent.weights), sent.weights)
    assert same(rounded(weights(run)), weights(run))


def test_a_part_travels_and_the_rest_stays_and_is_trained_at_each_site(federated, travelled):
    run = federated("run", QUICK, rounds=3, share="heads")
    part = part_of(build_method(read_config(run)), "heads")
    start = travelled[0][0]
    assert start.keys() > part  # all begin alike
    for number, (shared, sent) in enumerate(travelled):
        if number in (2, 3):
            assert shared.keys() == part
        assert sent.weights.keys() == (start.keys() if number > 3 else part)
    north, south = (weights(run / "sites" / name) for name in ("north", "south"))
    both = {name for name in start if torch.equal(north[name], south[name])}
    assert both >= part
    trained = {n for n in start.keys() - part if n.endswith("weight")}
    assert not trained & both
    assert not any(torch.equal(north[name], start[name]) for name in trained)
    for name in start:  # the whole network, sent once: the mean by 4 and 2 scans
        mean = (4 * travelled[4][1].weights[name] + 2 * travelled[5][1].weights[name]) / 6
        torch.testing.assert_close(weights(run)[name], mean.to(start[name].dtype))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_heads_to_share(name, tiny_run):
    config = load_config(None, ["network.width=16", f"method.name={name}"])
    told = {"plan": read_config(tiny_run).plan, "method": resolve_method(config.method)}
    told["network"] = resolve_network(config.network)
    with torch.device("meta"):
        method = build_method(RunConfig(**{**dict(config), **told}))
    heads, whole = part_of(method, "heads"), method.state_dict()
    assert heads < whole.keys()
    classes = len(read_config(tiny_run).plan.classes)
    assert {len(whole[n]) for n in heads if n.endswith("weight")} == {classes}
    attention = part_of(method, "attention")
    assert bool(attention) == (name == "dca-mt")
    assert attention == {key for key in whole if key.startswith("pair.exchange.")}
