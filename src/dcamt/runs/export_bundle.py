"""A run as a MONAI Bundle: a network that needs no dcamt, and the steps around it in MONAI's terms.

MONAI Bundle Specification, https://docs.monai.io/en/latest/mb_specification.html. The network is
TorchScript, which holds layers and weights in one file and runs no Python when it is loaded; its
graph, without the pre- and post-processing, is what ``predict`` runs.
"""

import json
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcamt import __version__
from dcamt.config import Normalization, Plan
from dcamt.escape import monai
from dcamt.inference.graph import WholeMethod, check_agrees, example_windows
from dcamt.inference.sliding_window import window_overlap
from dcamt.methods.method import Method
from dcamt.records.run_folder import RunConfig
from dcamt.wording import number_of

MODEL = "models/model.ts"
_USE = """
## Use

In this folder, with scans as NIfTI files in SCANS:

```sh
pip install "monai[fire,nibabel,scipy]"
python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS \\
  --output_dir segmentations
```

When this bundle was written, TorchScript and PyTorch gave the same probabilities on {checked_on}.
"""


def bundle_files(config: RunConfig, method: Method, card: str, licence: str) -> dict[str, bytes]:
    """The files of a bundle, by their path in it; the network comes last.

    ``licence`` is what the model card says of it. Raises InputError if TorchScript does not compute
    what PyTorch computes.
    """
    whole = WholeMethod(method)
    windows, checked_on = example_windows(config)
    configs = {
        "metadata.json": _text(metadata(config.plan, config.method.name, licence)),
        "inference.json": _text(workflow(config)),
    }
    model = _torchscript(whole, windows, configs)
    with torch.inference_mode():
        loaded = torch.jit.load(BytesIO(model), map_location="cpu")
        check_agrees("TorchScript", loaded, whole, windows)
    return {
        **{f"configs/{name}": content for name, content in configs.items()},
        "docs/README.md": (card + _USE.format(checked_on=checked_on)).encode(),
        "LICENSE": (licence + "\n").encode(),
        MODEL: model,
    }


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _torchscript(whole: WholeMethod, windows: Tensor, extra: Mapping[str, bytes]) -> bytes:
    """The graph as a file, with ``extra`` files in it; without the paths of our source.

    MONAI Deploy looks for the configuration within the file, below the file's own name.
    """
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # TorchScript is no longer developed
        traced = torch.jit.trace(whole, windows[:1], check_trace=False)
        path = Path(folder, Path(MODEL).name)
        torch.jit.save(traced, str(path), _extra_files=dict(extra))
        kept = BytesIO()
        with zipfile.ZipFile(path) as whole_file, zipfile.ZipFile(kept, "w") as without:
            for part in whole_file.infolist():
                if not part.filename.endswith(".debug_pkl"):  # lines of Python, and their folders
                    without.writestr(part, whole_file.read(part))
    return kept.getvalue()


def metadata(plan: Plan, method: str, licence: str) -> dict[str, Any]:
    """What the specification asks for: versions, and what the network takes and gives."""
    hounsfield = all(how.scheme == "window" for how in plan.normalization)
    structures = ", ".join(plan.classes[1:])
    shared = {
        "type": "image",
        "spatial_shape": list(plan.patch),
        "dtype": "float32",
        "is_patch_data": True,
    }
    image: dict[str, Any] = {
        "format": "hounsfield" if hounsfield else "magnitude",
        "modality": "CT" if hounsfield else "n/a",
        "num_channels": len(plan.channels),
        "value_range": [],
        "channel_def": {str(k): monai(name) for k, name in enumerate(plan.channels)},
    }
    prediction: dict[str, Any] = {
        "format": "labels",
        "modality": "n/a",
        "num_channels": len(plan.classes),
        "value_range": [0, 1],
        "channel_def": {str(k): monai(name) for k, name in enumerate(plan.classes)},
    }
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"written by dcamt {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": version("numpy"),
        "optional_packages_version": {name: version(name) for name in ("nibabel", "scipy")},
        "task": f"Segmentation of {structures} in 3D scans",
        "description": f"A network that outlines {structures} in 3D scans, trained by {method}. "
        "It takes windows of a normalised scan and gives the probability of each class.",
        "intended_use": "Research. It is no medical device; a trained person must check every "
        "segmentation.",
        "authors": "not stated",
        "copyright": licence,
        "network_data_format": {
            "inputs": {"image": {**shared, **image}},
            "outputs": {"pred": {**shared, **prediction}},
        },
    }


def workflow(config: RunConfig) -> dict[str, Any]:
    """What inference.json holds: scans in a folder, to the network's grid, through it and back.

    ``preprocessing``, ``inferer`` and ``postprocessing`` are the names by which MONAI Label and
    MONAI Deploy know the parts.
    """
    plan, predict = config.plan, config.predict
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/segmentations'",
        **_scans(plan),
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "torch.jit.load",
            "f": f"$@bundle_root + '/{MODEL}'",
            "map_location": "@device",
        },
        **_to_grid(plan),
        **({"filled": {"_target_": "FillHoles", "connectivity": 1}} if _is_masked(plan) else {}),
        "normalize": [_normalized(how) for how in plan.normalization],
        "preprocessing": {"_target_": "Compose", "transforms": _before(plan)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': scan} for scan in @datalist]",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(plan.patch),
            "sw_batch_size": predict.batch,
            "overlap": list(window_overlap(plan.patch, predict)),
            "mode": predict.weighting,
            "sw_device": "@device",
            "device": "cpu",
        },
        "postprocessing": {"_target_": "Compose", "transforms": _after()},
        "segment": "$torch.no_grad()(lambda case: @postprocessing("
        "{**case, 'pred': @inferer(case['image'][None], @network_def)[0]}))",
        "evaluator": {
            "_target_": "types.SimpleNamespace",
            "run": "$lambda: [@segment(case) for case in @dataset]",
        },
        "run": ["$@evaluator.run()"],
    }


def _scans(plan: Plan) -> dict[str, Any]:
    """The scans of a folder. Those of several channels may be several files, from CASE_0000 on."""
    found = "$sorted(glob.glob(@dataset_dir + '/*.nii*'))"
    count = len(plan.channels)
    if count == 1:
        return {"datalist": found}
    numbers = [f"_{channel:04d}.nii" for channel in range(count)]
    files = f"[first.replace('_0000.nii', number) for number in {numbers}]"
    return {
        "files": found,
        "first": "$[path for path in @files if '_0000.nii' in path]",
        # Four digits may also be the number of a case: then each file holds all channels.
        "by_channel": f"$[{files} for first in @first]",
        "datalist": "$@by_channel if sorted(sum(@by_channel, [])) == @files else @files",
    }


def _to_grid(plan: Plan) -> dict[str, Any]:
    """What resamples: both grids cover the same extent, as in dcamt.data.space."""
    spacing = list(plan.spacing)
    return {
        "grid": "$lambda image: [max(1, round(n * size / wanted)) for n, size, wanted in "
        f"zip(image.shape[1:], image.pixdim.tolist(), {spacing})]",
        "scale": "$lambda image: torch.as_tensor(monai.transforms.utils.scale_affine("
        "list(image.shape[1:]), @grid(image)))",
        "resample": {
            "_target_": "SpatialResample",
            "mode": "bilinear",
            "padding_mode": "border",
            "align_corners": False,
            "dtype": "$torch.float32",
        },
    }


def _is_masked(plan: Plan) -> bool:
    return any(how.masked for how in plan.normalization)


def _before(plan: Plan) -> list[dict[str, Any]]:
    image = {"keys": "image"}
    count = len(plan.channels)
    needs = f"each scan must have {number_of(count, 'channel')}; metadata.json says which"
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", **image},
        {"_target_": "EnsureChannelFirstd", **image},
        _changed(f"(torch._assert(len(x) == {count}, {needs!r}), x)[1]"),
        {"_target_": "Orientationd", **image, "axcodes": plan.orientation},
    ]
    if plan.crop:
        content = {"select_fn": "$lambda x: x != 0", "allow_smaller": True}
        steps.append({"_target_": "CropForegroundd", **image, "source_key": "image", **content})
    if _is_masked(plan):
        steps.append(_changed("torch.cat([x, @filled((x != 0).any(0, keepdim=True).float())])"))
    resampled = "@resample(x, x.affine.matmul(@scale(x)), @grid(x))"
    steps.append(_changed(resampled, inverse="@resample.inverse(x)"))
    if _is_masked(plan):
        # What does not count is zero after this, and what counts is not.
        channels = [[[[how.masked]]] for how in plan.normalization]
        outside = f"torch.tensor({channels}) & (x[-1:] < 0.5)"
        inside = "torch.where(x[:-1] == 0, 1e-30, x[:-1])"
        steps.append(_changed(f"torch.where({outside}, 0, {inside})"))
    each = "[normalize(channel) for normalize, channel in zip(@normalize, x.split(1))]"
    steps.append(_changed(f"torch.cat({each})"))
    return steps


def _changed(expression: str, inverse: str | None = None) -> dict[str, Any]:
    """A step that makes ``expression`` of the image ``x``, and ``inverse`` of it on the way back.

    MONAI's Lambdad forgets the way back, so this is a Lambda of all that belongs to a case.
    """
    whole = "$lambda case: {{**case, 'image': (lambda x: {})(case['image'])}}"
    step = {"_target_": "Lambda", "func": whole.format(expression)}
    return step if inverse is None else {**step, "inv_func": whole.format(inverse)}


def _normalized(how: Normalization) -> dict[str, Any]:
    """The transform of one channel, ``(1, x, y, z)``."""
    if how.scheme == "window":
        assert how.low is not None and how.high is not None
        assert how.mean is not None and how.std is not None
        return {
            "_target_": "ScaleIntensityRange",
            "a_min": how.low,
            "a_max": how.high,
            "b_min": (how.low - how.mean) / how.std,
            "b_max": (how.high - how.mean) / how.std,
            "clip": True,
        }
    if how.scheme == "zscore":
        return {"_target_": "NormalizeIntensity", "nonzero": how.masked}
    return {"_target_": "ScaleIntensity" if how.scheme == "minmax" else "Identity"}


def _after() -> list[dict[str, Any]]:
    pred = {"keys": "pred"}
    return [
        {
            "_target_": "Invertd",
            **pred,
            "orig_keys": "image",
            "transform": "@preprocessing",
            "nearest_interp": False,
        },
        {"_target_": "AsDiscreted", **pred, "argmax": True},
        # Else SaveImaged takes the axis of several files for one of space and finds no affine.
        {
            "_target_": "Lambda",
            "func": "$lambda case: (case['pred'].meta.update("
            "original_channel_dim=float('nan')), case)[1]",
        },
        {
            "_target_": "SaveImaged",
            **pred,
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_dtype": "$np.uint8",
            "resample": False,
            "separate_folder": False,
        },
    ]
