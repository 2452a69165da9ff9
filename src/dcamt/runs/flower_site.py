"""What Flower runs at a site of a federation: answers to the messages of the server.

The app that ``dcamt federate --app`` writes names ``client``. Flower answers each message in a
process of its own, so all that a site keeps lies in its run folder. Which data set and which folder
that are, the command line of its flower-supernode says alone.
"""

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcamt.config import Config, save_config
from dcamt.data.outputs import refuse_within_dataset
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.federation import SiteUpdate
from dcamt.files import alone, atomic
from dcamt.records.run_folder import (
    CONFIG,
    RunConfig,
    has_begun,
    read_config,
    refuse_existing_run,
    write_first,
)
from dcamt.runs.flower_messages import (
    APP,
    REFUSED,
    Kept,
    Sent,
    as_record,
    protocol_of,
    weights_in,
)
from dcamt.runs.joining import look, make_ready, own_config, told_of, write_summary
from dcamt.runs.masked import changes, largest, send_masked
from dcamt.runs.resume import reopen
from dcamt.runs.sites import Site, fabric_of, finish, score, train_round
from dcamt.runs.train import versions_of
from dcamt.section import validated

client = ClientApp()

_CHANGES = "changes.safetensors"
"""In the folder of a site, between its training and the masked sum."""


@dataclass(frozen=True)
class _Node:
    """A site, as the command line of its flower-supernode says.

    secure: whether it takes part in masked sums alone.
    """

    dataset: Path
    folder: Path
    secure: bool


def _answering(answer: Callable[[_Node, Message], RecordDict]) -> Callable[..., Message]:
    """``answer`` as Flower calls it."""

    def reply(message: Message, context: Context) -> Message:
        return Message(answer(_node(context), message), reply_to=message)

    return _careful(reply)


def _careful(reply: Callable[[Message, Context], Message]) -> Callable[..., Message]:
    """``reply``, where what goes wrong is told here, at the site, and not sent."""

    def careful(message: Message, context: Context) -> Message:
        try:
            return reply(message, context)
        except Exception as error:  # its text may name a case or a folder of the site
            if isinstance(error, InputError):
                print(f"dcamt: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            return Message(Error(REFUSED, "see the log of the site"), reply_to=message)

    return careful


def _node(context: Context) -> _Node:
    paths = []
    for key in ("dataset", "folder"):
        path = Path(str(context.node_config.get(key, "")))
        if not path.is_absolute():
            raise InputError(f'--node-config: give {key}="/PATH", the full path of a folder')
        paths.append(path)
    dataset, folder = paths
    return _Node(dataset, folder, bool(context.node_config.get("secure", False)))


def _given(message: Message) -> dict[str, Any]:
    return dict(json.loads(str(message.content.config_records["told"]["json"])))


def _shared(message: Message) -> RunConfig:
    return validated(RunConfig, _given(message)["config"], APP)


def _answer_look(node: _Node, message: Message) -> RecordDict:
    config = validated(Config, _given(message)["config"], APP)
    return as_record(asdict(look(node.dataset, config).summary))


def _answer_prepare(node: _Node, message: Message) -> RecordDict:
    """Prepare the scans, and note in the folder which cases are used for what."""
    if has_begun(node.folder):
        raise InputError(
            f"{node.folder}: holds a run; give an empty folder, or let the server go on with it "
            "(resume=true)"
        )
    refuse_existing_run(node.folder, resume=True)
    refuse_within_dataset(node.folder, node.dataset)
    shared = _shared(message)
    seen = look(node.dataset, shared)
    planned = make_ready(seen, shared)
    for warning in planned.warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    with alone(node.folder):
        write_first(node.folder, planned.split, planned.dataset, versions_of(shared))
        write_summary(node.folder, seen.summary)
    return as_record(asdict(told_of(planned)))


def _answer_begin(node: _Node, message: Message) -> RecordDict:
    refuse_existing_run(node.folder, resume=True)
    config = own_config(_shared(message), _given(message)["number"], node.dataset)
    with alone(node.folder):
        save_config(config, node.folder / CONFIG)
    return as_record(True)


def _answer_reopen(node: _Node, message: Message) -> RecordDict:
    config = own_config(_shared(message), _given(message)["number"], node.dataset)
    if read_config(node.folder).model_dump(mode="json") != config.model_dump(mode="json"):
        raise InputError(f"{node.folder}: holds another run; give the folder of this one")
    return as_record(asdict(told_of(reopen(node.folder))))


def _train(node: _Node, message: Message) -> SiteUpdate:
    given, site = _given(message), _site(node)
    shared, fabric = weights_in(message.content), fabric_of(site.planned.config)
    return train_round(site, shared, given["since"], protocol_of(given), fabric, ())


def _answer_send(node: _Node, message: Message) -> RecordDict:
    """Train, and send the weights."""
    if node.secure:
        raise InputError("--node-config: secure=true; this site sends no weights without --secure")
    with alone(node.folder):
        sent = _train(node, message)
    half = protocol_of(_given(message)).half
    return as_record(asdict(Sent(sent.cases, sent.losses)), sent.weights, half)


def _answer_keep(node: _Node, message: Message) -> RecordDict:
    """Train, and keep the changes of the weights for the masked sum."""
    with alone(node.folder):
        sent = _train(node, message)
        changed = changes(sent.weights, weights_in(message.content))
        with atomic(node.folder / _CHANGES) as temporary:
            save_file(changed, temporary, {"cases": str(sent.cases)})
    clip = protocol_of(_given(message)).clip
    # A bound on the whole change is one for each value, and tells nothing of the scans.
    most = dict.fromkeys(changed, clip) if clip else largest(changed)
    return as_record(asdict(Kept(sent.cases, sent.losses, most)))


def _mask(message: Message, context: Context) -> Message:
    """One of the four steps of a masked sum. What was kept for it goes into this one alone."""
    path = _node(context).folder / _CHANGES

    def kept() -> tuple[dict[str, Tensor], int]:
        with safe_open(path, "pt") as file:
            changed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            cases = int(file.metadata()["cases"])
        path.unlink()
        return changed, cases

    return send_masked(message, context, kept)


def _answer_score(node: _Node, message: Message) -> RecordDict:
    site, protocol = _site(node), protocol_of(_given(message))
    if not site.planned.split.val:
        return as_record(None)
    fabric = fabric_of(site.planned.config)
    return as_record(score(site, weights_in(message.content), protocol, fabric))


def _answer_finish(node: _Node, message: Message) -> RecordDict:
    site, protocol = _site(node), protocol_of(_given(message))
    with alone(node.folder):
        device = fabric_of(site.planned.config).device
        return as_record(asdict(finish(site, weights_in(message.content), protocol, device)))


def _site(node: _Node) -> Site:
    return Site(node.folder.name, node.folder, reopen(node.folder))


client.query("look")(_answering(_answer_look))
client.query("prepare")(_answering(_answer_prepare))
client.query("begin")(_answering(_answer_begin))
client.query("reopen")(_answering(_answer_reopen))
client.train("send")(_answering(_answer_send))
client.train("keep")(_answering(_answer_keep))
client.train()(_careful(_mask))
client.evaluate("score")(_answering(_answer_score))
client.evaluate("finish")(_answering(_answer_finish))
