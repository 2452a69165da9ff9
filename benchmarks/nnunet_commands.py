"""nnU-Net in an environment of its own, and its commands run there."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dcamt.engine.signals import Interrupted, catch_signals
from dcamt.errors import InputError
from dcamt.files import alone, append, holds, read_text, write_text
from dcamt.processes import child_environment, cores

NNUNET = "2.8.1"
DATA = "Dataset001_Rival"
TRAINER = Path(__file__).with_name("nnunet_trainer.py")
CORES = cores()
PROCESSES = min(4, max(1, CORES // 2))
"""In which nnU-Net prepares scans; each takes seconds to start."""
INSTALLED = "installed.txt"
"""In the environment, when it is complete: what was installed."""


@dataclass(frozen=True)
class Work:
    """Where it happens, what was asked for, and the lock that every process takes along."""

    out: Path
    env: Path
    settings: Mapping[str, Any]
    lock: int

    @property
    def raw(self) -> Path:
        return self.out / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        return self.out / "nnUNet_preprocessed"

    @property
    def trainer(self) -> str:
        return "TimedTrainer" if self.settings["mirroring"] else "TimedTrainerNoMirroring"

    @property
    def model(self) -> Path:
        """What nnU-Net leaves of a training."""
        return self.out / "nnUNet_results" / DATA / f"{self.trainer}__nnUNetPlans__3d_fullres"


def install(work: Work) -> None:
    """Make the environment of nnU-Net, with the PyTorch version that dcamt runs on.

    Our trainer is put among nnU-Net's own, where it is looked for first.
    """
    torch = version("torch").partition("+")[0]
    wanted = f"nnunetv2=={NNUNET} torch=={torch}"
    done = work.env / INSTALLED
    if holds(work.env) and not (work.env / "pyvenv.cfg").exists():
        raise InputError(f"{work.env}: holds something else; choose another --env")
    with alone(work.env):
        if not done.exists() or read_text(done) != wanted:
            call(work, "make an environment", [sys.executable, "-m", "venv", str(work.env)])
            pip = [str(work.env / "bin" / "python"), "-m", "pip", "install", *wanted.split()]
            call(work, f"install nnU-Net {NNUNET}", pip, r"Collecting [\w.-]+|Installing")
            write_text(done, wanted)
        (trainers,) = work.env.glob("lib/python*/site-packages/nnunetv2/training/nnUNetTrainer")
        write_text(trainers / TRAINER.name, read_text(TRAINER))


def nnunet(
    work: Work,
    what: str,
    command: str,
    options: Sequence[str],
    told: Mapping[str, str],
    shown: str = "",
) -> None:
    """Run a command of nnU-Net; ``told`` are environment variables."""
    folders = {
        "nnUNet_raw": str(work.raw),
        "nnUNet_preprocessed": str(work.preprocessed),
        "nnUNet_results": str(work.out / "nnUNet_results"),
    }
    settings = {"nnUNet_compile": "f", "nnUNet_def_n_proc": str(PROCESSES)}
    full = [str(work.env / "bin" / f"nnUNetv2_{command}"), *options]
    call(work, what, full, shown, {**folders, **settings, **told})


def call(
    work: Work,
    what: str,
    command: Sequence[str],
    shown: str = "",
    told: Mapping[str, str] | None = None,
) -> None:
    """Run a command; what it prints goes to nnunet.log, and what matches ``shown`` here, too.

    Raises Interrupted on SIGINT and SIGTERM, after which nothing of it is left running, and
    CalledProcessError, with a sentence as output, if it fails.
    """
    print(f"{what} ...", flush=True)
    environment = {**child_environment(), **(told or {}), "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONPATH", None)  # ours
    log = work.out / "nnunet.log"
    with append(log) as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[work.lock],
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        assert process.stdout is not None
        with catch_signals(lambda _: os.killpg(process.pid, signal.SIGTERM)) as stop:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if shown and (part := re.match(shown, line)):
                    print(f"  {part[0]}", flush=True)
            code = process.wait()
    if stop:
        raise Interrupted(stop[0], "give the same command again to go on")
    if code:
        fault = f"could not {what} (exit code {code}); the end of {log} says why"
        raise subprocess.CalledProcessError(code, command, fault)
