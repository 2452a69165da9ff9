"""What `dcamt cost --methods` measures."""

import pytest

from dcamt.runs.complexity import method_cost
from dcamt.runs.timing import cost_table, measure

PATCH = (16, 32, 16)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def costs():
    return measure("dca-mt:heads=1,bcp", PATCH, width=2, device="cpu", rounds=2)


def test_vnet_is_the_measure_of_all(costs):
    assert [row["name"] for row in costs["rows"]] == ["vnet", "dca-mt:heads=1", "bcp"]
    assert set(costs["rows"][0]["ratio"].values()) == {1.0}
    for row in costs["rows"]:
        for key, ratio in row["ratio"].items():
            assert row[key] > 0
            assert ratio == pytest.approx(row[key] / costs["rows"][0][key])


def test_counts_are_those_of_one_method(costs):
    vnet, _, bcp = costs["rows"]
    for row in (vnet, bcp):
        counted = method_cost(row["name"], PATCH, width=2)
        assert {key: row[key] for key in counted} == counted


def test_two_networks_cost_more_than_one(costs):
    ratio = costs["rows"][1]["ratio"]
    assert 2 < ratio["parameters"] < 3
    assert ratio["memory_mb"] > 1
    assert ratio["iteration_ms"] > 1.2
    assert ratio["volume_s"] > 1.2


def test_the_table_shows_value_and_ratio(costs):
    lines = cost_table(costs).splitlines()
    vnet = method_cost("vnet", PATCH, width=2)
    assert lines[2].startswith(f"| vnet | {vnet['parameters']:,} (1.00) | ")
    assert len(lines) == 7
    assert "growth of the process" in lines[-1]
