"""What may be asked of a run that goes on, and what would make another one of it."""

from pathlib import Path

import pytest

from dcamt.config import Config
from dcamt.errors import InputError
from dcamt.runs.build import resolve_network
from dcamt.runs.resume import refuse_changes


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
