"""The command line: each command is a function of dcamt.api and what shows its result."""

import dcamt.start  # noqa: F401  # isort: skip  (before all others)

import inspect
import json
import sys
from collections.abc import Callable, Iterable
from io import TextIOWrapper
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer

from dcamt import api
from dcamt.commands.options import Quiet
from dcamt.errors import InputError
from dcamt.memory import check_address_space, is_out_of_memory, lack_of_memory
from dcamt.nameless import name_the_nameless

if TYPE_CHECKING:
    from dcamt.data.inspect import Inspection
    from dcamt.records.results import Results
    from dcamt.records.scores import Scores
    from dcamt.runs.doctor import Finding

_PYTORCH = 0.9e9
"""Bytes of address space into which PyTorch can be loaded."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# ------------------------------------------------------------------------------- showing results
# Each takes what the command returns and, by name, options of the command; an annotation with
# typer.Option makes one that only the command line has, or has otherwise.


def _nothing(result: object) -> None:
    """The command has said it all."""


def _lines(result: Iterable[Path]) -> None:
    for line in result:
        typer.echo(line)


def _text(text: str) -> None:
    typer.echo(text, nl=False)


def _path(path: Path) -> None:
    typer.echo(path)


def _findings(findings: "Iterable[Finding]") -> None:
    verdicts = []
    for found in findings:
        typer.echo(f"{found.verdict:5}  {found.name}: {found.text}")
        verdicts.append(found.verdict)
    if "wrong" in verdicts:
        typer.echo("Something is wrong here; mend the lines that begin with 'wrong'.")
        raise typer.Exit(1)
    typer.echo("Nothing is wrong here.")


def _inspection(
    found: "Inspection",
    as_json: Json = False,
    every: Annotated[bool, typer.Option("--all", help="List every case.")] = False,
) -> None:
    from rich.console import Console

    from dcamt.data.inspect import render

    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        Console().print(render(found, every))
    if found.errors:
        raise typer.Exit(2)


def _run(run: Path, quiet: bool) -> None:
    if not quiet:
        typer.echo(f"run: {run}  report: {run / 'report.html'}")


def _federated(folder: Path, app: object, quiet: bool) -> None:
    if app is None:
        _run(folder, quiet)
    elif not quiet:
        typer.echo(f"app: {folder}; to start it: flwr run {folder}")


def _scores(
    result: "Scores",
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    quiet: Quiet = False,
) -> None:
    from rich.console import Console

    from dcamt.reporting.terminal import score_tables

    if not quiet:
        console = Console()
        console.print(*score_tables(result, console.width))


def _comparison(results: "Results", out: Path) -> None:
    """Tables that fit into the terminal, and Markdown to whatever else reads."""
    from rich.console import Console

    from dcamt.reporting.terminal import comparison_table

    if sys.stdout.isatty():
        console = Console()
        console.print(comparison_table(results, console.width))
    else:
        typer.echo((out / "table.md").read_text(encoding="utf-8"), nl=False)


def _costs(found: dict[str, Any], method: str, methods: str | None, as_json: Json = False) -> None:
    if methods is not None:
        from dcamt.runs.timing import cost_table

        typer.echo(json.dumps(found, indent=1) if as_json else cost_table(found), nl=as_json)
    elif as_json:
        typer.echo(json.dumps(found))
    else:
        typer.echo(f"{method}: {found['parameters']:,} parameters, {found['macs'] / 1e9:.2f} GMACs")


COMMANDS: dict[Callable[..., Any], Callable[..., None]] = {
    api.demo: _nothing,
    api.doctor: _findings,
    api.inspect: _inspection,
    api.pretrain: _run,
    api.train: _run,
    api.distill: _run,
    api.federate: _federated,
    api.predict: _nothing,
    api.rank: _nothing,
    api.prepare: _nothing,
    api.evaluate: _scores,
    api.report: _path,
    api.view: _nothing,
    api.card: _text,
    api.export: _lines,
    api.compare: _comparison,
    api.ablate: _comparison,
    api.cost: _costs,
}
"""Every command, in the order of `dcamt --help`, and what shows its result."""


# ------------------------------------------------------------------- from functions to commands


def _command(function: Callable[..., Any], show: Callable[..., None]) -> Callable[..., None]:
    """What typer makes a command of: the options of ``function`` and of ``show`` together."""
    own = inspect.signature(function).parameters
    _, *shown = inspect.signature(show).parameters.values()
    options = dict(own) | {p.name: p for p in shown if get_origin(p.annotation) is Annotated}

    def run(**given: Any) -> None:
        result = function(**{name: given[name] for name in own})
        show(result, **{p.name: given[p.name] for p in shown})

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_read_as(p.annotation))
            for p in options.values()
        ]
    )
    run.__doc__ = (inspect.getdoc(function) or "").split("\n\n")[0]
    return run


def _read_as(kind: Any) -> Any:
    """The type that the command line reads: the first of several, a list for an Iterable."""
    if get_origin(kind) is Annotated:
        kind, *options = get_args(kind)
        return Annotated[_read_as(kind), *options]
    first, *others = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if get_origin(first) is Iterable:
        first = GenericAlias(list, _read_as(*get_args(first)))
    return first | None if NoneType in others else first


app = typer.Typer(
    help="Semi-supervised segmentation of 3D medical volumes: a few labels, many scans.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _function, _show in COMMANDS.items():
    app.command(_function.__name__)(_command(_function, _show))


def _version(shown: bool) -> None:
    if shown:
        from dcamt import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Semi-supervised segmentation of 3D medical volumes: a few labels, many scans."""
    check_address_space(_PYTORCH, "PyTorch")


def main() -> Any:
    """Run the command line; errors that a user can mend are one sentence and exit code 2."""
    name_the_nameless()
    _print_anything()
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except UnicodeEncodeError as error:
        _fail(f"a name cannot be written in {error.encoding}; set PYTHONUTF8=1", 2)
    except OSError as error:
        if is_out_of_memory(error):
            _fail(_no_memory(error), 2)
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; check the path and the space on the disk", 2)
    except Exception as error:
        if is_out_of_memory(error):
            _fail(_no_memory(error), 2)
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        _fail(str(error), code)


def _print_anything() -> None:
    """Characters that the terminal or the file behind it does not have become question marks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def _no_memory(error: Exception) -> str:
    return f"{lack_of_memory(error)}; end other programs, raise the limit, or give less at a time"


def _fail(message: str, code: int) -> None:
    print(f"dcamt: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
