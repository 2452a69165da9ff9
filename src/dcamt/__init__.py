"""Semi-supervised segmentation of 3D medical volumes: a few labels, many scans.

    import dcamt

    dcamt.train("my_dataset", out="run", method="dca-mt", labeled=8)
    dcamt.predict("run", "new_scans", out="segmentations")
    dcamt.evaluate("segmentations", "my_dataset")

The same as the commands of ``dcamt --help``; see docs/python.md.
"""

import os

__version__ = "0.2.0"

# MONAI loads MLflow where it is installed, and MLflow reports its use over the network unless told
# not to. Scans of patients are no place for that.
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")

__all__ = [
    "InputError",
    "__version__",
    "ablate",
    "card",
    "compare",
    "cost",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "federate",
    "inspect",
    "predict",
    "prepare",
    "pretrain",
    "rank",
    "report",
    "train",
    "view",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dcamt.api import (
        ablate,
        card,
        compare,
        cost,
        demo,
        distill,
        doctor,
        evaluate,
        export,
        federate,
        inspect,
        predict,
        prepare,
        pretrain,
        rank,
        report,
        train,
        view,
    )
    from dcamt.errors import InputError


def __getattr__(name: str) -> "Any":
    # Imported on first use: PyTorch takes seconds to load, `dcamt --help` should not. And nothing
    # at all is imported before, so that dcamt.start comes first (see there).
    from importlib import import_module  # noqa: PLC0415

    if name not in __all__:
        raise AttributeError(f"module 'dcamt' has no attribute {name!r}")
    import sys  # noqa: PLC0415

    path = sys.path
    sys.path = [folder for folder in path if folder]  # a notebook looks in the current folder first
    try:
        if name == "InputError":
            return import_module("dcamt.errors").InputError
        import_module("dcamt.nameless").name_the_nameless()
        return getattr(import_module("dcamt.api"), name)
    finally:
        sys.path = path
