"""Masked sums, with the server and the sites in this process and every message kept."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("flwr", reason="Flower is not installed: `make test-federated` installs it")

from flwr.app import Context, RecordDict
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.supercore.task_identity import TaskIdentity

from dcamt.runs.flower_site import client
from dcamt.runs.masked import changes, largest, mask, masked_mean

CASES = {11: 3, 12: 8, 13: 1, 14: 5}
"""Numbers of training scans, by node."""


class Grid:
    """Hands each message to the app of its site, and keeps what comes back."""

    def __init__(self, folders):
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"dataset": str(folder), "folder": str(folder)},
                state=RecordDict(),
                run_config={},
            )
            for node, folder in folders.items()
        }
        self.received, self.lost = [], {}

    def send_and_receive(self, messages, timeout=None):
        replies = []
        for number, message in enumerate(messages):
            sent = copy.deepcopy(message)
            node = sent.metadata.dst_node_id
            sent.metadata.__dict__.update(_message_id=f"{number}", _run_id=1, _src_node_id=0)
            stage = sent.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
            if node in self.lost.get(stage, ()):
                continue
            replies.append(client(sent, self.contexts[node]))
        self.received += copy.deepcopy(replies)
        return replies


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The changes of each site, and a grid of them."""
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 0)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
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
        folders[node] = tmp_path / str(node)
        folders[node].mkdir()
        found[node] = changes(sent, shared)
        save_file(found[node], folders[node] / "changes.safetensors")
        split = {"labeled": ["a"], "unlabeled": ["b"] * (cases - 1)}
        (folders[node] / "split.json").write_text(json.dumps(split))
    return found, Grid(folders)


def average(found, nodes):
    total = sum(CASES[node] for node in nodes)
    return {
        name: sum(found[node][name] * CASES[node] / total for node in nodes).flatten()
        for name in found[11]
    }


def run(found, grid):
    scales = {n: max(largest(one)[n] for one in found.values()) for n in found[11]}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    mean, taken = masked_mean(grid, context, [*CASES], scales, max(CASES.values()), 5.0)
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
