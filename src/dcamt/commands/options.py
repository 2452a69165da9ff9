"""What several commands share: their options, and how what is given is read."""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

import typer

from dcamt.errors import InputError
from dcamt.processes import safe_path

if TYPE_CHECKING:
    from dcamt.config import Config

# Of several types the command line reads the first.
PathLike = Path | str
Count = int | Literal["all"]
Device = Literal["auto", "cpu", "cuda"]

Dataset = Annotated[PathLike, typer.Argument(help="Data set folder.")]
Run = Annotated[PathLike, typer.Argument(help="Folder of a run, or an export of one.")]
Splits = Annotated[
    PathLike | None,
    typer.Option(help="JSON of labeled, unlabeled, val, test; or nnU-Net's FILE:FOLD."),
]
Iterations = Annotated[int | None, typer.Option(help="Training iterations.")]
TrainingDevice = Annotated[Device | None, typer.Option(help="Where to compute; default auto.")]
Recipe = Annotated[PathLike | None, typer.Option(help="YAML recipe.")]
Sets = Annotated[
    Iterable[str], typer.Option("--set", help="key=value, e.g. network.width=8. Repeatable.")
]
PlanFile = Annotated[
    PathLike | None,
    typer.Option("--plan", help="Take the plan of this file, e.g. RUN/config.yaml."),
]
Init = Annotated[
    PathLike | None,
    typer.Option(help="Start from these weights: folder of train, pretrain, export, or a file."),
]
Seed = Annotated[int | None, typer.Option(help="Random seed; default 42.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
Weights = Annotated[Literal["last", "best"], typer.Option(help="Last, or best on validation.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only errors.")]


Given = ParamSpec("Given")
Result = TypeVar("Result")


def command(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """``function``, which imports what it needs when it runs, but not from the current folder."""

    @wraps(function)
    def run(*given: Given.args, **named: Given.kwargs) -> Result:
        with safe_path():
            return function(*given, **named)

    return run


def configuration(
    recipe: PathLike | None, named: Mapping[str, Any], sets: Iterable[str], plan: PathLike | None
) -> "Config":
    """The configuration of a recipe, named options, ``key=value`` overrides and perhaps a plan."""
    from dcamt.config import load_recipe

    overrides = [f"{key}={value}" for key, value in named.items() if value is not None]
    return load_recipe(optional_path(recipe), [*overrides, *sets], optional_path(plan))


def label_count(labeled: str | int | None) -> Count | None:
    """A number of labels, or "all"; InputError for any other text."""
    if not isinstance(labeled, str):
        return labeled
    if labeled == "all":
        return "all"
    if not labeled.isdecimal():
        raise InputError(f"--labeled {labeled}: give a number of cases, or all")
    return int(labeled)


def label_counts(labeled: str | int | Iterable[str | int] | None) -> list[Count | None]:
    """Several of `label_count`, which a text holds as 4,8,all."""
    if labeled is None or isinstance(labeled, int):
        return [labeled]
    several = labeled.split(",") if isinstance(labeled, str) else labeled
    return [label_count(one.strip() if isinstance(one, str) else one) for one in several]


def with_commas(names: str | Iterable[str]) -> str:
    """Names as the command line has them: in one text."""
    return names if isinstance(names, str) else ",".join(names)


def optional_path(value: PathLike | None) -> Path | None:
    """``value`` as a path; None stays None."""
    return None if value is None else Path(value)
