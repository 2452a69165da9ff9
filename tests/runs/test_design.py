import pytest

from dcamt.config import load_config
from dcamt.data.dataset import read_dataset
from dcamt.networks import BACKBONES
from dcamt.runs.design import Design, ablation_rows, choose_cases, list_runs, parse_rows
from dcamt.runs.plan import plan_run
from dcamt.runs.resume import refuse_changes


def test_rows_with_options():
    rows = parse_rows("vnet,dca-mt:bandwidths=[0.5,1]:targets=hard")
    assert [row.name for row in rows] == ["vnet", "dca-mt:bandwidths=[0.5,1]:targets=hard"]
    assert rows[1].method.options == {"bandwidths": [0.5, 1], "targets": "hard"}


def test_a_row_may_size_the_backbone_of_a_branch():
    name = "dca-mt:teacher_network.name=unet:teacher_network.width=4"
    (row,) = parse_rows(name)
    assert row.name == name
    assert row.method.options == {"teacher_network": {"name": "unet", "width": 4}}


def test_the_ablation_has_the_papers_rows():
    rows = ablation_rows()
    assert [row.name for row in rows] == ["Base", "Loss", "CrossAttention", "Mutual", "All"]
    assert {row.method.name for row in rows} == {"dca-mt"}
    components = [row.method.options["components"] for row in rows]
    assert components == ["base", "loss", "cross-attention", "mutual", "all"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_run_is_gone_on_with_whatever_its_backbone(backbone, phantoms, tmp_path, cache):
    """What a comparison asks of a run is what training writes there, sizes left out included."""
    dataset, splits = read_dataset(phantoms), phantoms / "splits.json"
    settings = ["data.patch=[64,32,32]", f"network.name={backbone}", "device=cpu"]
    config = load_config(None, settings)
    cases = choose_cases(dataset, tmp_path, splits, 2, config)
    design = Design(parse_rows("mean-teacher"), [2], 1, splits)
    (run,) = list_runs(dataset, tmp_path, design, [cases], config)
    planned = plan_run(phantoms, run.config, splits, 2)
    refuse_changes(run.config, planned.config, run.folder)
