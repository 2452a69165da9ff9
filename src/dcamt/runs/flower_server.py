"""What Flower runs at the server of a federation: it leads as ``dcamt.runs.rounds`` says.

The app that ``dcamt federate --app`` writes names ``server``. Sites are nodes that are registered
with their name and key.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from dcamt.config import Config, with_overrides
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.federation import Protocol, Ready, SiteSummary, SiteUpdate, mean_losses
from dcamt.plain_yaml import parse_yaml
from dcamt.records.run_folder import RunConfig
from dcamt.runs.flower_messages import (
    APP,
    REFUSED,
    Kept,
    Sent,
    as_record,
    protocol_of,
    weights_in,
)
from dcamt.runs.masked import masked_mean
from dcamt.runs.rounds import lead
from dcamt.runs.sites import Outcome

server = ServerApp()


def _lead(grid: Grid, context: Context) -> None:
    """Lead a federation, with the settings of the app."""
    given = context.run_config
    config = with_overrides(parse_yaml(str(given["config"]), APP) or {}, (), APP)
    protocol = protocol_of(given)
    names, timeout = str(given["sites"]).split(","), float(given["timeout"])
    sites = _There(grid, context, names, protocol, timeout)
    lead(sites, Path(str(given["out"])), config, protocol, resume=bool(given["resume"]))


class _There:
    """Sites behind connections: ``dcamt.runs.rounds.Sites``. ``timeout``: for an answer, in s."""

    def __init__(
        self, grid: Grid, context: Context, names: list[str], protocol: Protocol, timeout: float
    ):
        self.grid, self.context, self.names = grid, context, names
        self.protocol, self.timeout = protocol, timeout

    def look(self, config: Config) -> dict[str, SiteSummary]:
        self._meet()
        values = config.model_dump(mode="json", exclude_unset=True)
        return self._ask_all("query.look", SiteSummary, values)

    def prepare(self, shared: RunConfig) -> dict[str, Ready]:
        return self._ask_all("query.prepare", Ready, shared.model_dump(mode="json"))

    def begin(self, shared: RunConfig) -> None:
        self._ask_all("query.begin", bool, shared.model_dump(mode="json"))

    def reopen(self, shared: RunConfig) -> dict[str, Ready]:
        self._meet()
        return self._ask_all("query.reopen", Ready, shared.model_dump(mode="json"))

    def train(
        self, shared: Mapping[str, Tensor], since: int
    ) -> Iterator[tuple[str, SiteUpdate | InputError]]:
        if self.protocol.secure:
            yield from self._train_masked(shared, since)
            return
        for name, told, weights in self._ask("train.send", Sent, shared, since=since):
            sent = told if isinstance(told, InputError) else SiteUpdate(weights, **vars(told))
            yield name, sent

    def _train_masked(
        self, shared: Mapping[str, Tensor], since: int
    ) -> Iterator[tuple[str, SiteUpdate | InputError]]:
        """All sites that trained as one, with the mean of their weights."""
        kept: dict[str, Kept] = {}
        for name, told, _ in self._ask("train.keep", Kept, shared, since=since):
            if isinstance(told, InputError):
                yield name, told
            elif not (told.cases > 0 and told.largest.keys() <= shared.keys()):
                yield name, InputError("it sent other weights than those of this method")
            else:
                kept[name] = told
        nodes = {name: node for name, node in self._nodes().items() if name in kept}
        lost = InputError("it was lost before its part was in the sum")
        yield from ((name, lost) for name in kept if name not in nodes)
        if len(nodes) < 2:
            why = "fewer than two sites are left, and a sum of one would be its weights"
            yield ", ".join(nodes) or "the sum", InputError(why)
            return
        weights = {name for told in kept.values() for name in told.largest}
        scales = {w: max(told.largest.get(w, 0.0) for told in kept.values()) for w in weights}
        most = max(told.cases for told in kept.values())
        mean, taken = masked_mean(
            self.grid, self.context, [*nodes.values()], scales, most, self.timeout
        )
        there = [name for name in self.names if nodes.get(name) in taken]
        if not there:
            yield ", ".join(nodes), InputError("their masked sum did not come about")
            return
        yield from ((name, lost) for name in nodes if name not in there)
        losses = [(kept[name].losses, kept[name].cases) for name in there]
        sent = {name: _changed(shared[name], change) for name, change in mean.items()}
        cases = sum(kept[name].cases for name in there)
        yield ", ".join(there), SiteUpdate(sent, cases, mean_losses(losses))

    def score(self, shared: Mapping[str, Tensor]) -> dict[str, float]:
        found = self._told("evaluate.score", float | None, shared)
        return {name: dice for name, dice in found.items() if dice is not None}

    def finish(self, shared: Mapping[str, Tensor]) -> dict[str, Outcome]:
        return self._told("evaluate.finish", Outcome, shared)

    def _nodes(self) -> dict[str, int]:
        """The nodes that are connected now, by the names that they were registered with."""
        found: dict[str, int] = {}
        for node in self.grid.get_nodes():
            if node.name in found:
                raise InputError(
                    f"two nodes are registered as {node.name}; unregister one of them with `flwr "
                    "supernode unregister`"
                )
            if node.name in self.names:
                found[node.name] = node.node_id
        return found

    def _meet(self) -> None:
        """Wait until each site has connected; InputError if one does not."""
        until = time.monotonic() + self.timeout
        while missing := [*{*self.names} - self._nodes().keys()]:
            if time.monotonic() > until:
                raise InputError(
                    f"site {missing[0]} has not connected within {self.timeout:g} s; register its "
                    f"key with --name {missing[0]}, and start its flower-supernode"
                )
            time.sleep(3)

    def _ask(
        self, kind: str, expected: Any, weights: Mapping[str, Tensor] | None = None, **told: Any
    ) -> Iterator[tuple[str, Any, dict[str, Tensor]]]:
        """What each site tells, as ``expected``, and its weights; or an InputError with the reason.

        A question is sent to all sites that are connected, and then all answers are waited for.
        """
        sent, nodes = {}, self._nodes()
        for number, name in enumerate(self.names):
            if name in nodes:
                given = {**told, **asdict(self.protocol), "number": number}
                content = as_record(given, weights, self.protocol.half)
                sent[name] = Message(content, nodes[name], kind)
        messages = [*sent.values()]
        replies = self.grid.send_and_receive(messages, timeout=self.timeout) if messages else ()
        found = {reply.metadata.reply_to_message_id: reply for reply in replies}
        for name in self.names:
            reply = found.get(sent[name].metadata.message_id) if name in sent else None
            try:
                if name not in sent:
                    raise InputError("it is not connected")
                if reply is None:
                    raise InputError(f"it did not answer within {self.timeout:g} s")
                yield name, *_read(expected, reply)
            except InputError as error:
                yield name, error, {}

    def _ask_all(self, kind: str, expected: Any, config: Any) -> dict[str, Any]:
        """What all sites tell; InputError if one does not."""
        answers = {}
        for name, told, _ in self._ask(kind, expected, config=config):
            if isinstance(told, InputError):
                raise InputError(f"site {name}: {told}")
            answers[name] = told
        return answers

    def _told(self, kind: str, expected: Any, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """What those sites tell that do; of the others a line says why not."""
        answers = {}
        for name, told, _ in self._ask(kind, expected, weights):
            if isinstance(told, InputError):
                print(printable(f"{name} is not scored: {told}"), file=sys.stderr)
            else:
                answers[name] = told
        return answers


def _changed(weight: Tensor, change: Tensor) -> Tensor:
    """A weight after a change, which is a row of float64; counters are rounded."""
    new = weight.double() + change.reshape(weight.shape)
    return (new if weight.is_floating_point() else new.round()).to(weight.dtype)


def _read(expected: Any, reply: Message) -> tuple[Any, dict[str, Tensor]]:
    """What a site tells, as ``expected``, and its weights; InputError if there is no such thing."""
    if reply.has_error():
        refused = reply.error.code == REFUSED
        raise InputError("it cannot go on; its own log says why" if refused else "it was lost")
    told = reply.content.config_records.get("told", ConfigRecord())
    try:
        return TypeAdapter(expected).validate_json(str(told.get("json"))), weights_in(reply.content)
    except ValidationError:
        raise InputError(
            "its answer cannot be read; all sites need the same version of dcamt"
        ) from None


server.main()(_lead)
