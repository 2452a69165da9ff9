"""The reference pages hold every command, option, key and function."""

import inspect
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcamt import api
from dcamt.config import Config, Normalization, Plan
from dcamt.methods import METHODS

PAGES = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "reference.py"))["pages"]()


def rows(text: str) -> list[list[str]]:
    """The cells of every line of the tables, without the heads."""
    lines = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in text.splitlines() if line[:1] == "|"]
    return [cells for cells in lines if cells[0].startswith("`")]


def section(page: str, title: str) -> str:
    return PAGES[page].split(f"\n## {title}\n")[1].split("\n## ")[0]


def keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_of_the_configuration_is_there() -> None:
    known = {cells[0].strip("`") for cells in rows(PAGES["reference/configuration.md"])}
    expected = set(keys(Config().model_dump())) - {"plan"}
    expected |= {f"plan.{key}" for key in Plan.model_fields} - {"plan.normalization", "plan.codes"}
    expected |= {f"plan.normalization.{key}" for key in Normalization.model_fields}
    expected |= {f"method.{key}" for kind in METHODS.values() for key in kind.Config.model_fields}
    assert len(expected) > 90
    assert expected <= known


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].Config.model_fields])
def test_every_method_has_a_table_of_its_own_options(method) -> None:
    told = rows(section("reference/configuration.md", f"method: {method}"))
    assert [cells[0] for cells in told] == [
        f"`method.{k}`" for k in METHODS[method].Config.model_fields
    ]


@pytest.mark.parametrize("name", api.__all__)
def test_every_option_of_every_command_is_there(name) -> None:
    told = [cells[0] for cells in rows(section("reference/commands.md", name))]
    for parameter in inspect.signature(getattr(api, name)).parameters:
        option = f"`--{parameter.replace('_', '-')}`"
        assert f"`{parameter.upper()}`" in told or any(cell.startswith(option) for cell in told)


def test_options_of_the_command_line_alone_are_there_too() -> None:
    told = [cells[0] for cells in rows(section("reference/commands.md", "inspect"))]
    assert told == ["`DATASET`", "`--splits`", "`--json`", "`--all`"]


def test_type_default_and_description_are_those_of_the_code() -> None:
    told = {cells[0]: cells[1:] for cells in rows(PAGES["reference/configuration.md"])}
    assert told["`train.devices`"][:2] == ["whole number above 0", "`1`"]
    assert told["`data.patch`"][:2] == ["3 of: whole number above 0 or `null`", "`null`"]
    assert told["`predict.weighting`"][:2] == ["`gaussian` or `constant`", "`gaussian`"]


@pytest.mark.parametrize("page", ["reference/commands.md", "reference/configuration.md"])
def test_every_line_says_what_it_does(page) -> None:
    for name, kind, _, told in rows(PAGES[page]):
        assert kind and told.strip(), f"{name} has no description beside it in the code"


@pytest.mark.parametrize("name", api.__all__)
def test_every_function_is_there_with_what_it_says(name) -> None:
    text = section("reference/python.md", name)
    assert f"dcamt.{name}(" in text
    first = inspect.getdoc(getattr(api, name)).split("\n")[0]
    assert first.replace("``", "`") in text
