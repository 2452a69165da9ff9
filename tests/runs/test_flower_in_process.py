"""A federation over messages of Flower, with the server and the sites in this process."""

import copy
import json
import shutil
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("flwr", reason="Flower is not installed: `make test-federated` installs it")

from flwr.app import Array, ArrayRecord, Context, RecordDict
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.supercore.task_identity import TaskIdentity

from dcamt import api
from dcamt.data.phantom import write_phantoms
from dcamt.errors import InputError
from dcamt.runs import flower_site, rounds
from dcamt.runs.flower_messages import as_record, weights_in
from dcamt.runs.flower_server import server
from dcamt.runs.flower_site import client
from dcamt.runs.masked import changes, largest, mask, masked_mean

CASES = {11: 3, 12: 8, 13: 1, 14: 5}
"""Numbers of training scans, by node."""
NAMES = {11: "south", 12: "north", 13: "east", 14: "west"}


class Grid:
    """Hands each message to the app of its site, and keeps what comes back."""

    def __init__(self, folders, **config):
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"dataset": str(dataset), "folder": str(folder), **config},
                state=RecordDict(),
                run_config={},
            )
            for node, (dataset, folder) in folders.items()
        }
        self.received, self.lost = [], {}

    def fault(self, message, node):
        """Whether a message is lost; a test may put something else here."""
        return False

    def get_nodes(self):
        return [SimpleNamespace(node_id=n, name=NAMES[n]) for n in self.contexts]

    def send_and_receive(self, messages, timeout=None):
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(id(message))
            sent = copy.deepcopy(message)
            node = sent.metadata.dst_node_id
            steps = sent.content.config_records.get(RECORD_KEY_CONFIGS, {})
            if node in self.lost.get(steps.get(Key.STAGE), ()) or self.fault(sent, NAMES[node]):
                continue
            replies.append(client(sent, self.contexts[node]))
        self.received += copy.deepcopy(replies)
        return replies


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """What Flower gives to the process of an app."""
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 0)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)


@pytest.fixture
def kept(tmp_path):
    """The changes of each site, and a grid of them."""
    draw = torch.Generator().manual_seed(0)
    folders, found = {}, {}
    shared = {
        "conv": torch.randn(4000, generator=draw),
        "norm.running_var": torch.full((5,), 3.0),
        "norm.num_batches_tracked": torch.tensor(7),
        "still": torch.zeros(2, 2),
    }
    for node, cases in CASES.items():
        sent = {
            "conv": shared["conv"] + 1e-3 * torch.randn(4000, generator=draw),
            "norm.running_var": torch.tensor([0.5, 40.0, -9.0, 1000.0, 8.5]) * node,
            "norm.num_batches_tracked": torch.tensor(107),
            "still": torch.zeros(2, 2),
        }
        folder = tmp_path / str(node)
        folder.mkdir()
        folders[node] = folder, folder
        found[node] = changes(sent, shared)
        save_file(found[node], folder / "changes.safetensors", {"cases": str(cases)})
    return found, Grid(folders)


def at_server(run_config):
    return Context(1, 0, node_config={}, state=RecordDict(), run_config=run_config)


def average(found, nodes):
    total = sum(CASES[node] for node in nodes)
    return {
        name: sum(found[node][name] * CASES[node] / total for node in nodes).flatten()
        for name in found[11]
    }


def run(found, grid):
    scales = {n: max(largest(one)[n] for one in found.values()) for n in found[11]}
    mean, taken = masked_mean(grid, at_server({}), [*CASES], scales, max(CASES.values()), 5.0)
    return mean, sorted(taken), scales


def assert_close(mean, expected, scales):
    """To a few of the 4,194,304 steps within the range of each weight; nothing is cut."""
    assert mean.keys() == expected.keys()
    for name, value in mean.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=4e-6 * scales[name])


def test_the_masked_mean_is_the_mean_whatever_the_values(kept):
    found, grid = kept
    mean, taken, scales = run(found, grid)
    assert taken == [*CASES]
    assert scales["norm.running_var"] > 10_000
    assert_close(mean, average(found, CASES), scales)
    assert mean["norm.num_batches_tracked"].round() == 100


def test_nothing_that_the_server_gets_is_what_a_site_changed(kept):
    found, grid = kept
    run(found, grid)
    assert len(grid.received) == 4 * len(CASES)
    seen = 0
    for reply in grid.received:
        assert not reply.has_error()
        assert not any(len(record) for record in reply.content.array_records.values())
        told = reply.content.config_records[RECORD_KEY_CONFIGS]
        for part in told.get(Key.MASKED_PARAMETERS, ()):
            values = bytes_to_ndarray(part).astype(float)
            if values.size == 4000:
                seen += 1
                for one in found.values():
                    assert abs(np.corrcoef(values, one["conv"].numpy())[0, 1]) < 0.1
                assert values.std() == pytest.approx(2**32 / 12**0.5, rel=0.05)  # as noise has
        everything = b"".join(v for v in told.values() if isinstance(v, bytes))
        for one in found.values():
            plain = one["conv"].numpy()
            assert plain[:4].tobytes() not in everything
            assert plain[:4].astype("f4").tobytes() not in everything
    assert seen == len(CASES)


def test_a_site_lost_in_mid_sum_is_not_in_the_mean(kept):
    found, grid = kept
    grid.lost = {"collect_masked_vectors": {13}}
    mean, taken, scales = run(found, grid)
    assert taken == [11, 12, 14]
    assert_close(mean, average(found, taken), scales)


def test_a_sum_of_too_few_sites_does_not_come_about(kept):
    found, grid = kept
    grid.lost = {"collect_masked_vectors": {12, 13}}
    assert run(found, grid)[:2] == ({}, [])


def test_masks_of_like_seeds_are_unlike():
    shapes = [(1000,), (2, 3), ()]
    seeds = bytes(32), bytes(31) + b"\1", b"\1" + bytes(31), bytes(4) + b"\1" + bytes(27)
    masks = [mask(seed, 1 << 32, shapes) for seed in seeds]
    assert [part.shape for part in masks[0]] == shapes
    first = np.stack([one[0] for one in masks])
    assert all(len(set(column)) == len(seeds) for column in first.T)
    assert np.array_equal(mask(seeds[0], 1 << 32, shapes)[0], first[0])


def test_weights_travel_to_the_last_bit_and_what_is_none_is_refused():
    sent = {
        "conv": torch.randn(4, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
        "steps": torch.tensor(7),
        "half": torch.randn(3).half(),
    }
    found = weights_in(as_record({}, sent))
    assert found.keys() == sent.keys()
    for name, value in sent.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert weights_in(as_record({})) == {}
    record = as_record({}, sent)
    record["weights"] = ArrayRecord({"safetensors": Array(np.zeros(100, np.uint8))})
    with pytest.raises(InputError, match="cannot be read"):
        weights_in(record)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    root = tmp_path_factory.mktemp("sites")
    write_phantoms(root / "south", 3, (18, 20, 16), seed=5, labeled=1, val=1)
    write_phantoms(root / "north", 4, (20, 18, 16), seed=3, labeled=2, val=1)
    write_phantoms(root / "east", 3, (18, 16, 20), seed=7, labeled=1, val=1)
    return {name: root / name for name in ("south", "north", "east")}


def lead(sites, tmp_path, settings, resume=False, config=None, fault=None, **options):
    """Run the app of a federation of one round; its run folder and its grid."""
    app = api.federate(
        list(sites), tmp_path / "run", app=tmp_path / "app", timeout=9, set=settings,
        **{"rounds": 1, "iterations": 2, **options},
    )  # fmt: skip
    text = (app / "pyproject.toml").read_text()
    shutil.rmtree(app)
    run_config = tomllib.loads(text)["tool"]["flwr"]["app"]["config"] | {"resume": resume}
    folders = {
        node: (sites[name], tmp_path / "at" / name) for node, name in NAMES.items() if name in sites
    }
    grid = Grid(folders, **(config or {}))
    grid.fault = fault or grid.fault
    server(grid, at_server(run_config))
    return tmp_path / "run", grid


def weights(folder):
    found = load_file(folder / "last.safetensors")
    return {name: value for name, value in found.items() if not name.startswith("optimizer/")}


@pytest.fixture(scope="module")
def here(sites, tiny, cache, tmp_path_factory):
    """The same federation with folders on this machine."""
    settings = [one for one in tiny if not one.startswith("train.iterations")]
    out = tmp_path_factory.mktemp("here") / "run"
    return api.federate(sites.values(), out, rounds=1, iterations=2, set=settings, quiet=True)


def test_over_messages_the_weights_and_scores_are_those_of_folders(here, sites, settings, tmp_path):
    there, grid = lead(sites, tmp_path, settings)
    assert weights(there).keys() == weights(here).keys()
    for name, value in weights(here).items():
        assert torch.equal(weights(there)[name], value), name
    for name in ("config.yaml", "split.json", "versions.json"):
        assert (there / name).read_text() == (here / name).read_text()
    scores = [json.loads((run / "validation.json").read_text()) for run in (there, here)]
    assert scores[0] == scores[1]
    for reply in grid.received:
        told = json.dumps([dict(one) for one in reply.content.config_records.values()])
        assert "phantom_" not in told  # no name of a case
        assert str(tmp_path.parent) not in told  # and no folder


def test_masked_the_weights_are_the_same_but_for_rounding(here, sites, settings, tmp_path):
    there, grid = lead(sites, tmp_path, settings, secure=True, config={"secure": True})
    for name, value in weights(here).items():
        torch.testing.assert_close(weights(there)[name], value, rtol=1e-6, atol=1e-6)
    for reply in grid.received:
        assert not any(len(record) for record in reply.content.array_records.values())


def test_a_site_that_is_lost_in_a_masked_sum_is_noted(sites, settings, tmp_path, capsys):
    write_phantoms(tmp_path / "west", 3, (18, 16, 20), seed=9, labeled=1, val=1)
    four = {**sites, "west": tmp_path / "west"}

    def fault(message, name):
        steps = message.content.config_records.get(RECORD_KEY_CONFIGS, {})
        return name == "east" and steps.get(Key.STAGE) == "collect_masked_vectors"

    out, _ = lead(four, tmp_path, settings, secure=True, config={"secure": True}, fault=fault)
    assert "east is left out: it was lost before its part was in the sum" in capsys.readouterr().err
    assert json.loads((out / "versions.json").read_text())["left out"].startswith("east")


PRIVATE = ["network.name=segresnet", "network.width=8", "method.components=base"]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"half": True, "rounds": 2, "iterations": 1}, ["method.components=base"]),
        ({"share": "attention", "rounds": 3, "iterations": 1}, []),
        ({"clip": 0.1, "noise": 1.0, "iterations": 1}, PRIVATE),
    ],
    ids=["half precision", "attention alone", "noise"],
)
def test_what_travels_otherwise_gives_the_same_weights_as_in_folders(
    sites, settings, tmp_path, monkeypatch, options, changes
):
    monkeypatch.setattr(rounds, "_secret", lambda out: b"the same for both")
    given, two = [*settings, *changes], dict(list(sites.items())[:2])
    there, grid = lead(two, tmp_path, given, **options)
    options = {"rounds": 1, **options}
    here = api.federate(two.values(), tmp_path / "here", set=given, quiet=True, **options)
    for name, value in weights(here).items():
        assert torch.equal(weights(there)[name], value), name
    sent = [reply.content for reply in grid.received if "weights" in reply.content.array_records]
    sizes = [one.array_records["weights"]["safetensors"].numpy().nbytes for one in sent]
    whole = sum(value.nbytes for value in weights(here).values())
    if "half" in options:
        assert max(sizes) < 0.7 * whole
    elif "share" in options:
        assert max(sizes[:4]) < 0.05 * whole
        assert min(sizes[4:]) > whole
    else:
        assert not any(json.loads(str(one["told"]["json"]))["losses"] for one in sent)


def test_a_masked_part_of_the_weights_gives_the_same_weights(sites, settings, tmp_path):
    options = {"share": "heads", "rounds": 2, "iterations": 1}
    given = [*settings, "method.components=base"]
    there, _ = lead(sites, tmp_path, given, secure=True, **options)
    here = api.federate(sites.values(), tmp_path / "here", set=given, quiet=True, **options)
    for name, value in weights(here).items():
        torch.testing.assert_close(weights(there)[name], value, rtol=1e-5, atol=1e-5)


def test_masked_sums_are_of_changes_with_a_bound_and_sites_count_alike(sites, settings, tmp_path):
    options = {"clip": 0.1, "noise": 1e-9, "iterations": 1}
    given = [*settings, *PRIVATE]
    there, grid = lead(sites, tmp_path, given, secure=True, **options)
    here = api.federate(
        sites.values(), tmp_path / "here", rounds=1, set=given, quiet=True, **options
    )
    for name, value in weights(here).items():
        torch.testing.assert_close(weights(there)[name], value, rtol=0, atol=2e-7)
    told = [
        json.loads(str(one.content["told"]["json"]))
        for one in grid.received
        if "told" in one.content.config_records
    ]
    (kept, *_) = found = [one for one in told if isinstance(one, dict) and "largest" in one]
    assert {*kept["largest"].values()} == {0.1}  # tells nothing of the scans
    assert [(one["cases"], one["losses"]) for one in found] == 3 * [(1, {})]


def test_a_site_that_takes_part_in_masked_sums_alone_sends_no_plain_weights(
    sites, settings, tmp_path, capsys
):
    with pytest.raises(InputError, match=r"no site could be used .* its own log says why"):
        lead(sites, tmp_path, settings, config={"secure": True})
    assert "this site sends no weights without --secure" in capsys.readouterr().err


def test_what_goes_wrong_at_a_site_is_told_there_and_not_sent(sites, settings, tmp_path, capsys):
    broken = shutil.copytree(sites["south"], tmp_path / "broken")
    (broken / "imagesTr" / "phantom_000.nii.gz").write_bytes(b"spoilt")
    with pytest.raises(InputError) as refused:
        lead({**sites, "south": broken}, tmp_path, settings)
    assert str(refused.value) == "site south: it cannot go on; its own log says why"
    assert "phantom_000" in capsys.readouterr().err


def since(message):
    return json.loads(message.content.config_records["told"]["json"]).get("since")


def test_a_round_goes_on_without_a_site_that_is_silent_or_sends_what_is_not_finite(
    sites, settings, tmp_path, monkeypatch, capsys
):
    train = flower_site.train_round

    def poisoned(site, shared, since, *given):
        sent = train(site, shared, since, *given)
        if (site.folder.name, since) == ("south", 0):
            next(iter(sent.weights.values()))[0] = torch.nan
        return sent

    def silent(message, name):
        return (name, since(message)) in (("east", 0), ("north", 2))

    monkeypatch.setattr(flower_site, "train_round", poisoned)
    there, _ = lead(sites, tmp_path, settings, rounds=2, fault=silent)
    told = capsys.readouterr().err
    for line in (
        "round 1 of 2: south is left out: the weight ",
        "round 1 of 2: north is done",
        "round 1 of 2: east is left out: it did not answer within 9 s",
        "round 2 of 2: south is done",
        "round 2 of 2: north is left out: it did not answer within 9 s",
        "round 2 of 2: east is done",
    ):
        assert line in told
    assert all(torch.isfinite(value).all() for value in weights(there).values())


def test_a_server_that_was_killed_goes_on_after_the_last_round(sites, settings, tmp_path):
    two = dict(list(sites.items())[:2])

    def killed(message, name):
        if (name, since(message)) == ("north", 2):
            raise ConnectionError("the link is gone")

    with pytest.raises(ConnectionError):
        lead(two, tmp_path, settings, rounds=2, fault=killed)
    there, _ = lead(two, tmp_path, settings, rounds=2, resume=True)
    out = tmp_path / "here"
    here = api.federate(two.values(), out, rounds=2, iterations=2, set=settings, quiet=True)
    for name, value in weights(here).items():
        assert torch.equal(weights(there)[name], value), name
    with pytest.raises(InputError, match="exists already"):
        lead(two, tmp_path, settings, rounds=2)
    shutil.rmtree(there)
    with pytest.raises(InputError, match="site south: it cannot go on"):
        lead(two, tmp_path, settings, rounds=2)  # a site's own run is never overwritten
