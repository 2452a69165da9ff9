"""``dcamt federate``: several sites train one network, and no scan leaves its site.

The sites are worked for one after another in this process. ``dcamt.federation`` says what goes
from one to the others, ``dcamt.runs.sites`` what happens at each, ``dcamt.runs.rounds`` what
happens between them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from lightning_fabric import Fabric
from torch import Tensor

from dcamt.config import Config
from dcamt.data.outputs import refuse_within_dataset
from dcamt.engine.precision import told_of_float32
from dcamt.engine.signals import Interrupted, catch_signals
from dcamt.engine.together import started_by_torchrun
from dcamt.errors import InputError
from dcamt.escape import printable
from dcamt.federation import Protocol, Ready, SiteSummary, SiteUpdate
from dcamt.files import same_folder
from dcamt.records.run_folder import RunConfig, read_config, write_beginning
from dcamt.runs.joining import Seen, look, make_ready, own_config, told_of, write_summary
from dcamt.runs.plan import Planned
from dcamt.runs.resume import reopen
from dcamt.runs.rounds import lead
from dcamt.runs.sites import Outcome, Site, fabric_of, finish, score, train_round
from dcamt.runs.train import versions_of


def federate_run(
    folders: Sequence[Path],
    out: Path,
    config: Config,
    protocol: Protocol,
    resume: bool = False,
    quiet: bool = False,
) -> Path:
    """Train one network on the data sets in ``folders``, each a site; returns ``out``.

    With ``resume`` a half-finished run goes on with its own configuration. Raises InputError for
    anything the user can mend.
    """
    if started_by_torchrun():
        raise InputError("federate trains in one process; start it without torchrun")
    named = _names(folders)
    for folder in folders:
        refuse_within_dataset(out, folder)
    lead(_Here(named, out, protocol, quiet), out, config, protocol, resume, quiet)
    return out


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by their own names."""
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in named:
            raise InputError(
                f"{folder}: its name is that of {named[name]} as well; rename one of the folders"
            )
        named[name] = folder
    return named


class _Here:
    """Sites that are folders of this machine: ``dcamt.runs.rounds.Sites``."""

    def __init__(self, named: Mapping[str, Path], out: Path, protocol: Protocol, quiet: bool):
        self.named, self.out, self.protocol, self.quiet = named, out, protocol, quiet
        self.seen: dict[str, Seen] = {}
        self.planned: dict[str, Planned] = {}

    def look(self, config: Config) -> dict[str, SiteSummary]:
        self.seen = {name: look(folder, config) for name, folder in self.named.items()}
        return {name: seen.summary for name, seen in self.seen.items()}

    def prepare(self, shared: RunConfig) -> dict[str, Ready]:
        self.planned = {name: make_ready(seen, shared) for name, seen in self.seen.items()}
        return {name: told_of(planned) for name, planned in self.planned.items()}

    def begin(self, shared: RunConfig) -> None:
        versions = versions_of(shared)
        for number, (name, planned) in enumerate(self.planned.items()):
            for warning in () if self.quiet else planned.warnings:
                print(printable(f"warning: {name}: {warning}"), file=sys.stderr)
            config = own_config(shared, number, self.named[name])
            self.planned[name] = replace(planned, config=config)
            folder = self._folder(name)
            write_beginning(folder, config, planned.split, planned.dataset, versions)
            write_summary(folder, self.seen[name].summary)

    def reopen(self, shared: RunConfig) -> dict[str, Ready]:
        self._refuse_others()
        self.planned = {name: reopen(self._folder(name)) for name in self.named}
        return {name: told_of(planned) for name, planned in self.planned.items()}

    def train(
        self, shared: Mapping[str, Tensor], since: int
    ) -> Iterator[tuple[str, SiteUpdate | InputError]]:
        with catch_signals() as stop:
            for site in self._sites():
                sent: SiteUpdate | InputError
                try:
                    sent = train_round(site, shared, since, self.protocol, self.fabric, stop)
                except InputError as error:
                    sent = error
                yield site.name, sent
            if stop:
                raise Interrupted(stop[0])

    def score(self, shared: Mapping[str, Tensor]) -> dict[str, float]:
        return {
            site.name: score(site, shared, self.protocol, self.fabric)
            for site in self._sites()
            if site.planned.split.val
        }

    def finish(self, shared: Mapping[str, Tensor]) -> dict[str, Outcome]:
        device = self.fabric.device
        return {s.name: finish(s, shared, self.protocol, device) for s in self._sites()}

    @cached_property
    def fabric(self) -> Fabric:
        """What all sites compute on."""
        config = next(iter(self.planned.values())).config
        fabric = fabric_of(config)
        note = told_of_float32(config.train.precision, fabric)
        if note and not self.quiet:
            print(note, file=sys.stderr)
        return fabric

    def _sites(self) -> list[Site]:
        return [Site(n, self._folder(n), planned) for n, planned in self.planned.items()]

    def _folder(self, name: str) -> Path:
        return self.out / "sites" / name

    def _refuse_others(self) -> None:
        """InputError unless the sites are those that the run was begun with."""
        folder = self.out / "sites"
        kept = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        other = self.named.keys() ^ kept
        for name in self.named.keys() & kept:
            dataset = read_config(folder / name).dataset
            if dataset is None or not same_folder(dataset, self.named[name]):
                other.add(name)
        if other:
            raise InputError(
                f"{self.out}: was begun with other sites (see {sorted(other)[0]}); give those that "
                f"lie in {folder} by name, or start a new run in another --out"
            )
