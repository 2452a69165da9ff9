"""``dcamt federate --app``: what Flower needs to run a federation over real connections."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from dcamt import __version__
from dcamt.config import Config
from dcamt.errors import InputError
from dcamt.federation import Protocol
from dcamt.files import refuse_existing, write_text
from dcamt.runs.federated_checks import check_protocol

_PROJECT = '''\
# Written by `dcamt federate --app`: run it with `flwr run`.

[project]
name = "dcamt-federation"
version = "{version}"
description = "Several sites train one network, and no scan leaves its site"
license = "Apache-2.0"
# The server and every site have dcamt[federated] already: Flower installs nothing.
dependencies = []

[tool.flwr.app]
publisher = "dcamt"

[tool.flwr.app.components]
serverapp = "dcamt.runs.flower_server:server"
clientapp = "dcamt.runs.flower_site:client"

[tool.flwr.app.config]
sites = {sites}
# Run folder that the server writes, and whether it goes on with one.
out = {out}
resume = false
rounds = {protocol.rounds}
iterations = {protocol.iterations}
strategy = "{protocol.strategy}"
proximal = {proximal}
secure = {secure}
clip = {clip}
noise = {noise}
half = {half}
share = "{protocol.share}"
# Seconds that a site may take to answer.
timeout = {timeout}
config = """
{config}"""
'''


def write_app(
    folder: Path,
    names: Sequence[str],
    out: Path,
    config: Config,
    protocol: Protocol,
    timeout: float,
) -> Path:
    """Write a Flower app for the sites of these names, in their order; returns its ``folder``.

    out: run folder at the server. timeout: seconds that a site may take to answer. Raises
    InputError for whatever would keep it from running.
    """
    refuse_existing(folder, advice="choose another --app")
    check_protocol(config, protocol)
    for name in names:
        if not name.isprintable() or not name.strip() or "," in name or "/" in name:
            raise InputError(f"{name}: with --app give names of sites, without / and comma")
        if names.count(name) > 1:
            raise InputError(f"{name}: is given twice; give each site a name of its own")
    if protocol.secure and len(names) < 3:
        raise InputError("--secure: give at least 3 sites; of two, each would know the other's")
    if not timeout > 0:
        raise InputError(f"--timeout {timeout:g}: give a number of seconds above 0")
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"dataset"})
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None) if values else ""
    project = _PROJECT.format(
        version=__version__,
        sites=_quoted(",".join(names)),
        out=_quoted(str(out.absolute())),
        protocol=protocol,
        proximal=float(protocol.proximal),
        secure=str(protocol.secure).lower(),
        clip=float(protocol.clip),
        noise=float(protocol.noise),
        half=str(protocol.half).lower(),
        timeout=float(timeout),
        config=_escaped(text),
    )
    write_text(folder / "pyproject.toml", project)
    return folder


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """``text`` within quotes of TOML."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
