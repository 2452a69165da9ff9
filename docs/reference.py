"""The reference pages, made from the code: commands, keys of the configuration, functions."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo

from dcamt import api
from dcamt.cli import app
from dcamt.config import Config, MethodConfig
from dcamt.methods import METHODS

REQUIRED = "*required*"
Section = type[BaseModel]


def pages() -> dict[str, str]:
    """Path within the site and text, in Markdown, of every page of the reference."""
    return {
        "reference/commands.md": commands(),
        "reference/configuration.md": configuration(),
        "reference/python.md": functions(),
    }


# ------------------------------------------------------------------------------------- commands


def commands() -> str:
    """Every command with its arguments and options, as `dcamt COMMAND --help` shows them."""
    text = [
        "# Commands\n",
        "This page is made from the code. `dcamt COMMAND --help` shows the same in the terminal.\n",
        "A value in the column *default* is used if you leave the option out. An option marked "
        "*required* must be given.\n",
    ]
    for registered in app.registered_commands:
        assert registered.callback is not None
        parameters = inspect.signature(registered.callback).parameters.values()
        rows = [_option(parameter) for parameter in parameters]
        usage = f"dcamt {registered.name}"
        for name, *_ in (row for row in rows if row[2] == REQUIRED):
            option = name.strip("`")
            usage += f" {option} {option[2:].upper()}" if option.startswith("-") else f" {option}"
        if any(row[2] != REQUIRED for row in rows):
            usage += " [OPTIONS]"
        text += [
            f"## {registered.name}\n",
            f"{registered.callback.__doc__}\n",
            f"```sh\n{usage}\n```\n",
            *([_table(("name", "type", "default", "what it does"), rows)] if rows else []),
        ]
    return "\n".join(text)


def _option(parameter: inspect.Parameter) -> tuple[str, str, str, str]:
    kind, told = parameter.annotation, None
    if get_origin(kind) is Annotated:
        kind, *others = get_args(kind)
        told = next(o for o in others if isinstance(o, ArgumentInfo | OptionInfo))
    if isinstance(told, ArgumentInfo):
        name = f"`{parameter.name.upper()}`"
    else:
        declared = (told.default, *(told.param_decls or ())) if told else ()  # all that were given
        names = [one for one in declared if isinstance(one, str)]
        names = names or ["--" + parameter.name.replace("_", "-")]
        name = ", ".join(f"`{option}`" for option in names)
    if parameter.default is parameter.empty:
        default = REQUIRED
    else:
        default = _value(parameter.default) if parameter.default not in (None, False, ()) else ""
    return name, _kind(kind), default, (told.help if told else None) or ""


# -------------------------------------------------------------------------------- configuration


def configuration() -> str:
    """Every key of a recipe and of a run's config.yaml."""
    text = [
        "# Configuration\n",
        "This page is made from the code. Set a key on the command line, "
        "`--set train.iterations=2000`, or in a YAML file that you give with `--config`:\n",
        "```yaml\ntrain:\n  iterations: 2000\n```\n",
        "The run folder's `config.yaml` shows every key with the value that was used. A key that "
        "is `null` is decided by the program. A recipe cannot hold the section `plan`: it is made "
        "from the scans, and `--plan` takes that of another run.\n",
    ]
    for title, section, prefix in sections(Config):
        rows = list(_keys(section, prefix))
        if rows:
            text += [f"## {title or 'The run'}\n", f"{_note(section)}\n"]
            text.append(_table(("key", "type", "default", "what it does"), rows))
    return "\n".join(text)


def sections(section: Section, path: str = "") -> Iterator[tuple[str, Section, str]]:
    """Heading, class and prefix of the keys, of a section and of all sections within it."""
    yield path, section, f"{path}." if path else ""
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is not None:
            name_of_one = ".CLASS" if get_origin(field.annotation) is dict else ""
            yield from sections(inner, (f"{path}.{name}" if path else name) + name_of_one)
        if inner is MethodConfig:
            for method, kind in sorted(METHODS.items()):
                yield f"{name}: {method}", kind.Config, f"{name}."


def _note(section: Section) -> str:
    """The first paragraph of a section's docstring; for a method's the one of its file."""
    text = section.__doc__ or sys.modules[section.__module__].__doc__ or ""
    return _markdown(text.split("\n\n")[0])


def _section_in(kind: Any) -> Section | None:
    """The section that a field holds, alone, in a list or by name."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next(filter(None, map(_section_in, get_args(kind))), None)


def _keys(section: Section, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    told = descriptions(section)
    for name, schema in section.model_json_schema()["properties"].items():
        field = section.model_fields[name]
        if _section_in(field.annotation) is None or prefix == "method.":
            default = field.get_default(call_default_factory=True)
            shown = "" if field.is_required() else _value(default)
            yield f"`{prefix}{name}`", _schema(schema), shown, told.get(name, "")


def descriptions(section: Section) -> dict[str, str]:
    """The text below each field of a class, or of the class that it was inherited from."""
    told = {}
    for kind in reversed(section.__mro__):
        if not issubclass(kind, BaseModel) or kind is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                told[ast.unparse(field.target)] = ast.literal_eval(below.value)
    return told


def _schema(schema: dict[str, Any]) -> str:
    """A JSON schema in words: "whole number above 0", "number 0 to 1", "`a` or `b`"."""
    if "$ref" in schema:
        return "backbone"
    if "anyOf" in schema:
        return " or ".join(_schema(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(_value(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        inner = list(dict.fromkeys(_schema(item) for item in items))
        number = f"{len(items)} of: " if "prefixItems" in schema else "list of: "
        return number + ", ".join(inner)
    words = {"integer": "whole number", "number": "number", "string": "text", "null": "`null`"}
    words |= {"boolean": "`true` or `false`", "object": "mapping"}
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return f"{words[kind]} {least:.10g} to {most:.10g}"
    limits = {"minimum": "from", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    told = [f"{word} {schema[key]:.10g}" for key, word in limits.items() if key in schema]
    return " ".join([words[kind], *told])


# ------------------------------------------------------------------------------------ functions


def functions() -> str:
    """The functions of dcamt.api, with signature and docstring."""
    text = [
        "# Python functions\n",
        "This page is made from the code. All functions are attributes of `dcamt`. Options have "
        "the names and the meaning that they have on the [command line](commands.md). "
        "[From Python](../python.md) shows them at work.\n",
    ]
    for name in api.__all__:
        function = getattr(api, name)
        signature = f"```python\n{_signature(name, function)}\n```\n"
        text += [f"## {name}\n", signature, f"{_markdown(function.__doc__)}\n"]
    return "\n".join(text)


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    lines, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("    *,\n")
            starred = True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        lines.append(f"    {parameter.name}: {_annotation(parameter.annotation)}{default},\n")
    inner = "\n" + "".join(lines) if lines else ""
    return f"dcamt.{name}({inner}) -> {_annotation(signature.return_annotation)}"


def _annotation(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return re.sub(r"(pathlib|typing|collections\.abc)\.", "", text)


# --------------------------------------------------------------------------------------- tables


def _kind(kind: Any) -> str:
    """A type of the command line in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_kind(one) for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Literal:
        return " or ".join(_value(value) for value in get_args(kind))
    if get_origin(kind) is list:
        return _kind(get_args(kind)[0]) + ", repeatable"
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} of: {_kind(get_args(kind)[0])}"
    words = {bool: "switch", int: "whole number", float: "number", str: "text", Path: "path"}
    return words.get(kind, str(kind))


def _value(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return f"`{words[value]}`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(_value(one).strip("`") for one in value) + "]`"
    return f"`{value}`"


def _markdown(docstring: str) -> str:
    return re.sub(r"``(.*?)``", r"`\1`", inspect.cleandoc(docstring))


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str, str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    lines = [tuple(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
