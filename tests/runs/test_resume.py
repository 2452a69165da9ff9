"""What may be asked of a run that goes on, and what would make another one of it."""

from pathlib import Path

import pytest

from dcamt.config import Config, Normalization, Plan
from dcamt.errors import InputError
from dcamt.runs.build import resolve_network
from dcamt.runs.plan import Planned
from dcamt.runs.resume import refuse_changes, with_processes


def begun(name: str) -> Config:
    config = Config.model_validate({"network": {"name": name}})
    return config.model_copy(update={"network": resolve_network(config.network)})


@pytest.mark.parametrize("name", ["vnet", "unet", "mednext", "swin-unetr"])
def test_sizes_that_are_left_to_the_backbone_are_no_change(name) -> None:
    asked = Config.model_validate({"network": {"name": name, "width": None, "size": None}})
    refuse_changes(asked, begun(name), Path("run"))


def test_a_data_set_may_be_named_from_another_folder() -> None:
    kept = begun("vnet").model_copy(update={"dataset": "/somewhere/scans"})
    refuse_changes(Config.model_validate({"dataset": "scans"}), kept, Path("run"))


def test_processes_may_be_chosen_anew() -> None:
    kept = begun("vnet")
    planned = Planned(kept, None, None, ())
    changes = {"devices": 2}, {"workers": 3}
    for change in changes:
        asked = Config.model_validate({"train": change})
        refuse_changes(asked, kept, Path("run"))
        found = with_processes(planned, asked).config.train
        assert found.model_dump() == kept.train.model_dump() | change


def test_the_patch_of_the_plan_is_no_change() -> None:
    plan = Plan(
        channels=("mr",), classes=("background", "organ"), ignore=None, orientation="RAS",
        spacing=(1, 1, 1), crop=True, normalization=(Normalization(),), patch=(32, 48, 16),
    )  # fmt: skip
    kept = begun("vnet").model_copy(update={"plan": plan})
    refuse_changes(Config.model_validate({"data": {"patch": [32, 48, 16]}}), kept, Path("run"))
    with pytest.raises(InputError, match=r"data.patch = None, not \[32, 48, 32\]"):
        refuse_changes(Config.model_validate({"data": {"patch": [32, 48, 32]}}), kept, Path("run"))


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ({"size": "B"}, "network.size = S, not B"),
        ({"width": 8}, "network.width = 32, not 8"),
        ({"name": "vnet"}, "network.name = mednext, not vnet"),
        ({"size": "XXL"}, "has the sizes S, B, M, L, not XXL"),
    ],
)
def test_another_network_is_refused(network, told) -> None:
    asked = Config.model_validate({"network": network})
    with pytest.raises(InputError, match=told):
        refuse_changes(asked, begun("mednext"), Path("run"))
