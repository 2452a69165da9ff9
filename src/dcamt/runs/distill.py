"""``dcamt distill``: a training like any other, of a light network that a finished run teaches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcamt.config import with_overrides
from dcamt.data.outputs import refuse_within_dataset
from dcamt.engine.together import started_by_torchrun
from dcamt.errors import InputError
from dcamt.networks import BACKBONES
from dcamt.records.run_folder import RunConfig, has_begun, refuse_existing_run
from dcamt.runs.build import (
    DISTILLATION,
    check_networks,
    load_run,
    resolve_method,
    resolve_network,
)
from dcamt.runs.plan import Planned
from dcamt.runs.resume import refuse_changes, reopen, with_processes
from dcamt.runs.teacher import KEY, record_of, refuse_other_teacher
from dcamt.runs.train import carry_out, versions_of

(_NAME,) = DISTILLATION
_LIGHTER = {"vnet": "light-vnet"}
"""Backbones that compute faster than those that they stand for, of the same width."""


def distill_run(
    run: Path, out: Path, changes: Sequence[str], resume: bool = False, quiet: bool = False
) -> Path:
    """Teach a light network by ``run``, segment the validation cases, write the report.

    ``changes`` are ``key=value`` settings that win over those of ``run``. Returns ``out``. Raises
    InputError for anything the user can mend.
    """
    if started_by_torchrun():
        raise InputError("distill is not for torchrun; set train.devices=N for several processes")
    _refuse_settings_of(run, changes)
    config, method = load_run(run)
    record = record_of(config, method)
    versions = None
    if resume and has_begun(out):
        planned = reopen(out)
        asked = with_overrides({"method": {"name": _NAME}}, changes, "configuration")
        refuse_changes(asked, planned.config, out)
        refuse_other_teacher(out, record)
        planned = with_processes(planned, asked)
    else:
        refuse_existing_run(out, resume)
        planned = _plan(run, config, changes)
        refuse_within_dataset(out, planned.dataset.root)
        versions = {**versions_of(planned.config), KEY: record}
    return carry_out(out, planned, versions, resume, quiet, teacher=run)


def _refuse_settings_of(run: Path, changes: Sequence[str]) -> None:
    """InputError for settings that the teacher decides."""
    for change in changes:
        key = change.partition("=")[0]
        if key.partition(".")[0] in ("dataset", "data", "plan"):
            raise InputError(
                f"--set {change}: data set, split and plan are those of {run}; leave it out, or "
                "train another teacher"
            )
        if key in ("method", "method.name"):
            raise InputError(f"--set {change}: distill has its own method; leave it out")


def _plan(run: Path, teacher: RunConfig, changes: Sequence[str]) -> Planned:
    """The light training: data, split, plan and settings of ``run``, with a network of its own."""
    if teacher.dataset is None:
        raise InputError(
            f"{run}: names no data set, as it is exported or of several sites; give the run folder "
            "of `dcamt train`, or of one site"
        )
    planned = reopen(run)
    values: dict[str, Any] = teacher.model_dump(mode="json")
    values |= {"method": {"name": _NAME}, "device": "auto"}
    if any(change.startswith("network.name=") for change in changes):
        values["network"] = {}  # another backbone has sizes of its own
    else:
        name = _LIGHTER.get(teacher.network.name, teacher.network.name)
        step = BACKBONES[name].width_step
        width = max(step, _width(teacher) // 2 // step * step)
        values["network"] |= {"name": name, "width": width}
    asked = with_overrides(values, changes, f"{run}/config.yaml")
    told = {"method": resolve_method(asked.method), "network": resolve_network(asked.network)}
    config = RunConfig(**{**dict(asked), **told})
    check_networks(config)
    return Planned(config, planned.split, planned.dataset, planned.ready)


def _width(teacher: RunConfig) -> int:
    width = resolve_network(teacher.network).width
    assert width is not None
    return width
