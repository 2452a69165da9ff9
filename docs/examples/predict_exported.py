"""`dcamt predict` without dcamt: python predict_exported.py EXPORT SCAN [SCAN ...] OUT.

EXPORT is a folder of `dcamt export --format onnx` or `openvino`, each SCAN a NIfTI file of one
channel.
"""

import json
import sys
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import binary_fill_holes, zoom


def load(model):
    """A function of one window, which gives the probabilities of each class."""
    if model.suffix == ".xml":
        import openvino  # noqa: PLC0415 (only one of them is needed)

        network = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda window: network(window)[0]
    import onnxruntime  # noqa: PLC0415

    network = onnxruntime.InferenceSession(model)
    return lambda window: network.run(None, {"image": window})[0]


def resample(x, size):
    return zoom(x, np.divide(size, x.shape), order=1, mode="nearest", grid_mode=True)


def normalize(x, how, inside):
    if how["scheme"] == "window":
        return (x.clip(how["low"], how["high"]) - how["mean"]) / how["std"]
    if how["scheme"] == "minmax":
        return (x - x.min()) / max(np.ptp(x), 1e-8)
    if how["scheme"] == "none":
        return x
    inside = inside if how["masked"] and inside.any() else np.ones_like(inside)
    return (x - x[inside].mean()) / max(x[inside].std(), 1e-8) * inside


folder, *scans, out = map(Path, sys.argv[1:])
about = json.loads((folder / "model.json").read_text())
network = load(folder / about["model"])
patch, classes = about["patch"], about["classes"]

# To the network's axes, cropped to what is not zero, and to its spacing (mm) and intensities.
files = [nib.load(scan) for scan in scans]
own, wanted = io_orientation(files[0].affine), axcodes2ornt(about["orientation"])
turned = [file.as_reoriented(ornt_transform(own, wanted)) for file in files]
scan = np.stack([file.get_fdata(dtype=np.float32) for file in turned])
full = scan.shape[1:]
content = np.nonzero(scan.any(0)) if about["crop"] and scan.any() else np.indices(full)
box = tuple(slice(i.min(), i.max() + 1) for i in content)
scan = scan[:, *box]
ratio = nib.affines.voxel_sizes(turned[0].affine) / about["spacing"]
size = [max(1, round(n)) for n in scan.shape[1:] * ratio]
inside = resample(binary_fill_holes(scan.any(0)).astype(np.float32), size) >= 0.5
pairs = zip(scan, about["normalization"], strict=True)
image = np.stack([normalize(resample(x, size), how, inside) for x, how in pairs])

# Overlapping windows, whose middles count more; a scan smaller than a window is padded with 0.
missing = [max(0, p - n) for n, p in zip(size, patch, strict=True)]
image = np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in missing)]).astype(np.float32)
bells = [np.exp(-((np.arange(p) - (p - 1) / 2) ** 2) / (2 * (p / 8) ** 2)) for p in patch]
weight = np.einsum("i,j,k", *bells).clip(1e-3) if about["weighting"] == "gaussian" else 1.0
total, weights = np.zeros((len(classes), *image.shape[1:])), np.zeros(image.shape[1:])
axes = zip(image.shape[1:], patch, about["step"], strict=True)
for start in product(*([min(i, n - p) for i in range(0, n - p + s, s)] for n, p, s in axes)):
    window = tuple(slice(i, i + p) for i, p in zip(start, patch, strict=True))
    total[:, *window] += weight * network(image[None, :, *window])[0]
    weights[window] += weight
kept = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, size, strict=True))

# Back to the scan's own voxels; outside of the box all is 0, and the first class is background.
whole = np.zeros((len(classes), *full), np.float32)
whole[:, *box] = [resample(p[kept], scan.shape[1:]) for p in total / weights]
segmentation = apply_orientation(whole.argmax(0).astype(np.uint8), ornt_transform(wanted, own))
nib.save(nib.Nifti1Image(segmentation, files[0].affine), out)
