"""Each command is one function: what the command line offers is what Python offers."""

import inspect
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest
import typer
from typer.main import get_command

import dcamt
from dcamt import api, cli
from dcamt.commands.options import PathLike, label_count, label_counts
from dcamt.config import Config, PredictConfig
from dcamt.data.benchmarks import PRESETS
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import UNITS
from dcamt.evaluation.metrics import METRICS
from dcamt.inference.predictor import Backend
from dcamt.runs.predict import OUTPUT_FORMATS

COMMANDS = get_command(cli.app).commands
POSITIONAL = {
    "ablate": ("dataset", "out"),
    "card": ("runs", "weights"),
    "compare": ("dataset", "out", "methods"),
    "cost": ("method", "patch", "channels", "classes", "width"),
    "demo": ("out",),
    "distill": ("run", "out"),
    "doctor": (),
    "evaluate": ("predictions", "labels", "out"),
    "export": ("run", "out"),
    "federate": ("sites", "out"),
    "inspect": ("dataset", "splits"),
    "predict": ("run", "input", "out"),
    "prepare": ("preset", "source", "out"),
    "pretrain": ("dataset", "out"),
    "rank": ("run", "input", "out"),
    "report": ("run",),
    "train": ("dataset", "out"),
    "view": ("paths",),
}
"""What Python takes without a name; scripts rely on the order."""
SHOWN = {"inspect": {"as_json", "every"}, "evaluate": {"quiet"}, "cost": {"as_json"}}
"""Options of the command line alone, on how a result is shown."""


def parameters_of(name):
    return inspect.signature(getattr(api, name)).parameters


def options_of(name):
    return {p.name: p for p in COMMANDS[name].params if p.name != "help"}


def test_every_function_is_a_command_and_every_command_a_function():
    assert set(COMMANDS) == set(api.__all__) == set(POSITIONAL)
    offered = set(dcamt.__all__) - {"InputError", "__version__"}
    assert offered == set(COMMANDS)
    assert all(getattr(dcamt, name) is getattr(api, name) for name in offered)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_options_of_its_function(name):
    parameters, options = parameters_of(name), options_of(name)
    assert set(options) == set(parameters) | SHOWN.get(name, set())
    taken = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert tuple(taken) == POSITIONAL[name]
    for parameter in parameters.values():
        option = options[parameter.name]
        flag = "--" + parameter.name.replace("_", "-")
        assert option.param_type_name == "argument" or flag in option.opts
        if (name, parameter.name) == ("evaluate", "out"):
            assert option.required  # of which Python needs none: it has the result
        elif parameter.default is parameter.empty:
            assert option.required
        else:
            assert (option.required, option.default) == (False, parameter.default)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_its_options_explain_themselves(name):
    assert COMMANDS[name].help == inspect.getdoc(getattr(api, name)).split("\n\n")[0]
    assert all(option.help for option in options_of(name).values())


def choices(name, parameter):
    """What may be given, written in the signature."""
    kind = get_args(parameters_of(name)[parameter].annotation)[0]
    literal = next((k for k in get_args(kind) if get_args(k)), kind)
    return set(get_args(literal))


def test_the_choices_are_those_there_are():
    device = set(get_args(Config.model_fields["device"].annotation))
    for name in ("train", "pretrain", "predict", "compare", "ablate", "cost"):
        assert choices(name, "device") == device
    weighting = set(get_args(PredictConfig.model_fields["weighting"].annotation))
    assert choices("predict", "weighting") == weighting
    assert choices("predict", "format") == set(OUTPUT_FORMATS)
    assert choices("predict", "backend") == set(get_args(Backend))
    assert choices("prepare", "preset") == set(PRESETS)
    assert choices("evaluate", "unit") == set(UNITS)
    assert parameters_of("evaluate")["metrics"].default == ",".join(METRICS)


@pytest.mark.parametrize("given", [None, 8, "all"])
def test_a_number_of_labels_stays_what_it_is(given):
    assert label_count(given) == given
    assert label_counts(given) == [given]


def test_numbers_of_labels_may_be_written():
    assert label_count("8") == 8
    assert label_counts("4, 8,all") == label_counts([4, "8", "all"]) == [4, 8, "all"]
    for text in ("few", "-1", "4.5", ""):
        with pytest.raises(InputError, match=f"--labeled {text}: give a number of cases, or all"):
            label_count(text)
    with pytest.raises(InputError, match="--labeled x: "):
        label_counts("4,x")


@pytest.mark.parametrize("command", [api.train, api.ablate])
def test_python_may_write_them_too(command, tmp_path):
    with pytest.raises(InputError, match="--labeled few: "):
        command(tmp_path, tmp_path / "out", labeled="few")
    assert not list(tmp_path.iterdir())


def several(
    where: Annotated[PathLike, typer.Argument()],
    among: Annotated[Iterable[PathLike] | PathLike, typer.Option()],
    names: Annotated[str | Iterable[str], typer.Option()],
    set: Annotated[Iterable[str], typer.Option("--set")] = (),
    how: Annotated[Literal["a", "b"] | None, typer.Option()] = None,
    size: Annotated[tuple[int, int] | None, typer.Option()] = None,
) -> dict[str, object]:
    """Give back what it was given."""
    return dict(locals())


def test_the_command_line_reads_the_first_of_several_types(capsys):
    found = {}

    def show(
        result: dict[str, object], size: object, loud: Annotated[bool, typer.Option("--loud")]
    ) -> None:
        found.update(result, shown=size, loud=loud)

    app = typer.Typer(add_completion=False)
    app.command()(cli._command(several, show))
    app(
        ["here", "--among", "x", "--among", "y", "--names", "m,n", "--set", "k=v", "--loud",
         "--how", "b", "--size", "1", "2"],
        standalone_mode=False,
    )  # fmt: skip
    assert found == {
        "where": Path("here"), "among": [Path("x"), Path("y")], "names": "m,n", "set": ["k=v"],
        "how": "b", "size": (1, 2), "shown": (1, 2), "loud": True,
    }  # fmt: skip
    app(["here", "--among", "x", "--names", "m", "--loud"], standalone_mode=False)
    assert (list(found["set"]), found["how"], found["size"]) == ([], None, None)


def test_the_functions_load_nothing_heavy_before_they_run():
    code = "import sys; from dcamt import api; import dcamt; dcamt.train; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "dcamt.commands.predict" in loaded
    heavy = {"torch", "numpy", "monai", "scipy", "rich", "yaml", "dcamt.config"}
    assert not heavy & set(loaded)
