"""``dcamt federate``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from dcamt.commands.options import (
    PathLike,
    Quiet,
    Recipe,
    Resume,
    Seed,
    Sets,
    TrainingDevice,
    command,
    configuration,
)


@command
def federate(
    sites: Annotated[
        Iterable[PathLike] | PathLike,
        typer.Argument(help="Data set folders, one for each site; with --app names of sites."),
    ],
    out: Annotated[PathLike, typer.Option(help="Run folder to write.")],
    *,
    rounds: Annotated[int, typer.Option(help="How often weights are averaged.")] = 20,
    iterations: Annotated[
        int, typer.Option(help="Training iterations of each site in a round.")
    ] = 100,
    strategy: Annotated[
        Literal["fedavg", "fedprox", "fedbn"],
        typer.Option(help="How sites stay together; fedprox and fedbn are for unlike scans."),
    ] = "fedavg",
    proximal: Annotated[
        float, typer.Option(help="For fedprox: how strongly sites are held together.")
    ] = 0.01,
    clip: Annotated[
        float, typer.Option(help="Bound on what a site changes in a round (L2 norm); with --noise.")
    ] = 0.0,
    noise: Annotated[
        float,
        typer.Option(help="Noise that hides each site (differential privacy), over --clip."),
    ] = 0.0,
    half: Annotated[bool, typer.Option("--half", help="Weights travel in half precision.")] = False,
    share: Annotated[
        Literal["all", "attention", "heads"],
        typer.Option(help="Weights that travel; the others stay and are trained at each site."),
    ] = "all",
    app: Annotated[
        PathLike | None,
        typer.Option(help="Write a Flower app here, for sites on other machines; train nothing."),
    ] = None,
    secure: Annotated[
        bool, typer.Option("--secure", help="With --app: mask the weights of each site.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="With --app: seconds that a site may take to answer.")
    ] = 7200,
    method: Annotated[str | None, typer.Option(help="Training method; default dca-mt.")] = None,
    seed: Seed = None,
    device: TrainingDevice = None,
    config: Recipe = None,
    set: Sets = (),
    resume: Resume = False,
    quiet: Quiet = False,
) -> Path:
    """Train one network on the scans of several sites that share no scan.

    Each of ``sites`` is a data set as `train` takes; its splits.json is used if it has one. A site
    may be without labels, but not all of them. A plan is made from summaries of the scans. In each
    of ``rounds`` every site trains ``iterations`` from the shared weights, one site after another;
    the new weights are the mean of theirs, each counted by its number of training scans. The
    result is an ordinary run folder (docs/federated.md). ``resume`` goes on after the last
    site that was done with its round. Returns the run folder ``out``.

    With ``clip`` and ``noise`` the weights are differentially private for each site: its change in
    a round is at most ``clip``, all sites count alike, and the sum of their changes gets noise with
    a standard deviation of ``noise`` times ``clip``.

    That is on this machine. ``app`` is a folder for a Flower app instead, by which a server leads
    sites on other machines, and which is returned; ``sites`` are their names, ``out`` is a folder
    of the server. Raises InputError for whatever the user can mend; what exists is never
    overwritten.
    """
    from dcamt.errors import InputError
    from dcamt.federation import Protocol
    from dcamt.runs.federate import federate_run
    from dcamt.runs.federated_app import write_app

    named = {"method.name": method, "seed": seed, "device": device}
    resolved = configuration(config, named, set, None)
    proximal = proximal if strategy == "fedprox" else 0.0
    protocol = Protocol(
        rounds,
        iterations,
        strategy,
        proximal,
        secure,
        clip=clip,
        noise=noise,
        half=half,
        share=share,
    )
    given = [sites] if isinstance(sites, str | Path) else list(sites)
    if app is not None:
        if resume:
            raise InputError("--resume: with --app, give resume=true to `flwr run` instead")
        names = [str(site) for site in given]
        return write_app(Path(app), names, Path(out), resolved, protocol, timeout)
    if secure:
        raise InputError("--secure: is for sites on other machines; give --app as well")
    folders = [Path(site) for site in given]
    return federate_run(folders, Path(out), resolved, protocol, resume=resume, quiet=quiet)
