"""Drawn volumes with known labels: the data set that ships inside the package.

A phantom is a left atrium as a contrast-enhanced MR scan might show it: an irregular body with
three to five branching veins (labelled), beside a ventricle, a right atrium, an aorta and an
artery of similar brightness (not labelled). Shape, pose, contrast, bias field and noise vary so
much between cases that a few labels do not show it all.

Shapes are drawn in body coordinates: mm from the centre of the atrium, axes right, anterior,
superior. A shape is an array of signed distances in mm (approximate), negative inside.
"""

import json
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from dcamt.data.volume import Volume, write_volume
from dcamt.errors import InputError
from dcamt.files import read_json, write_text

Array = NDArray[np.float64]

NAME = "Phantom"
SPACING = (1.0, 1.0, 1.5)
CLASSES = ("background", "atrium", "veins")
VEINS = ((1, -0.3, 0.6), (-1, -0.3, 0.6), (1, -0.5, -0.5), (-1, -0.5, -0.5), (0, 0, 1))
"""Directions in which veins may leave the atrium: right, left, right, left, up."""


def write_phantoms(
    root: Path,
    cases: int = 40,
    size: tuple[int, int, int] = (44, 44, 32),
    seed: int = 0,
    *,
    labeled: int = 4,
    val: int = 8,
    classes: int = 2,
) -> None:
    """Draw a data set into `root`: MSD layout plus `splits.json`.

    Every case has a label file; `splits.json` (keys `labeled`, `unlabeled`, `val`) says which ones
    training may see. The same arguments always write the same bytes, and a case does not
    depend on how many others are drawn. Case sizes vary by up to a tenth around `size` (voxels).

    Raises InputError if `root` holds another data set or the numbers do not add up.
    """
    if min(labeled, val) < 1 or labeled + val > cases:
        raise InputError(
            f"cannot split {cases} phantoms into {labeled} labelled and {val} validation cases: "
            "ask for at least one of each and for no more than there are"
        )
    description = root / "dataset.json"
    if description.exists() and read_json(description).get("name") != NAME:
        raise InputError(f"{root} holds another data set: choose a new or an empty folder")

    names = [f"phantom_{index:03d}" for index in range(cases)]
    for index, name in enumerate(names):
        rng = np.random.default_rng([seed, index])
        extent = tuple(round(n * rng.uniform(0.9, 1.1)) for n in size)
        image, label = draw_phantom(rng, extent, classes=classes)
        intensity = np.rint(image.array[0]).astype(np.int16)
        write_volume(root / "imagesTr" / f"{name}.nii.gz", intensity, image.affine)
        write_volume(root / "labelsTr" / f"{name}.nii.gz", label.array, label.affine)

    split = {
        "labeled": names[:labeled],
        "unlabeled": names[labeled : cases - val],
        "val": names[cases - val :],
    }
    write_text(root / "splits.json", json.dumps(split, indent=1) + "\n")
    # Last, so that a folder with a dataset.json is a complete one.
    write_text(description, json.dumps(_description(names, classes), indent=1) + "\n")


def draw_phantom(
    rng: Generator,
    size: tuple[int, ...] = (44, 44, 32),
    spacing: tuple[float, float, float] = SPACING,
    classes: int = 2,
) -> tuple[Volume, Volume]:
    """Draw one phantom: image (1, X, Y, Z) float32 and label (X, Y, Z) int16 on the same grid.

    `size` is in voxels and `spacing` in mm. With 2 classes the label is 1 in atrium and veins;
    with 3 the veins outside the atrium's body are 2. The affine is oblique and left-handed.
    Raises InputError for any other number of classes.
    """
    if classes not in (2, 3):
        raise InputError(f"phantoms have 2 or 3 classes, not {classes}: choose one of these")
    scan = _rotation(rng, 8) @ np.diag([-1.0, 1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = scan @ np.diag(spacing)
    affine[:3, 3] = rng.uniform(-60, 60, 3)

    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    body = (grid @ scan.T - rng.uniform(-3, 3, 3)) @ _rotation(rng, 9)

    atrium = _blob(rng, body, np.zeros(3), rng.uniform([10, 8, 9], [15, 12, 13]))
    veins = _veins(rng, body)
    label = np.zeros(size, np.int16)
    label[veins < 0] = classes - 1
    label[atrium < 0] = 1

    image = _scan(rng, body, np.minimum(atrium, veins))
    return Volume(image[None].astype(np.float32), affine), Volume(label, affine.copy())


def _description(names: list[str], classes: int) -> dict[str, object]:
    """The contents of `dataset.json`."""
    return {
        "name": NAME,
        "description": "Drawn left-atrium-like phantoms",
        "tensorImageSize": "3D",
        "modality": {"0": "MR"},
        "labels": {str(value): CLASSES[value] for value in range(classes)},
        "numTraining": len(names),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
        "test": [],
    }


def _rotation(rng: Generator, degrees: float) -> Array:
    """A rotation matrix (3, 3) by a normal random angle about each axis."""
    matrix: Array = Rotation.from_euler("xyz", rng.normal(0, degrees, 3), degrees=True).as_matrix()
    return matrix


def _blob(rng: Generator, points: Array, centre: Array, radii: Array) -> Array:
    """An ellipsoid whose surface waves at low frequency; `points` (X, Y, Z, 3), all in mm."""
    scaled = (points - centre) / radii
    length = np.linalg.norm(scaled, axis=-1)
    direction = scaled / np.maximum(length, 1e-6)[..., None]
    waves = np.cos(direction @ rng.normal(0, 2.2, (3, 6)) + rng.uniform(0, 2 * np.pi, 6))
    surface = 1 + waves @ rng.normal(0, 0.07, 6)
    distance: Array = (length - surface) * radii.mean()
    return distance


def _tube(points: Array, path: Array, radius: Array) -> Array:
    """A tube along `path` (N, 3) with a radius (N,) at each of its points, all in mm."""
    distance: Array = (cdist(points.reshape(-1, 3), path) - radius).min(axis=1)
    return distance.reshape(points.shape[:3])


def _arc(start: Array, middle: Array, end: Array, samples: int) -> Array:
    """A quadratic Bezier curve (samples, 3) that bends towards `middle`."""
    t = np.linspace(0, 1, samples)[:, None]
    curve: Array = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    return curve


def _veins(rng: Generator, points: Array) -> Array:
    """Three to five curved veins that leave the atrium left and right; some of them fork."""
    distance = np.full(points.shape[:3], np.inf)
    for root in rng.permutation(VEINS)[: rng.integers(3, 6)]:
        outward = root / np.linalg.norm(root) + rng.normal(0, 0.22, 3)
        start, middle, end = 5 * outward, 13 * outward, rng.uniform(17, 24) * outward
        middle = middle + rng.normal(0, 2.5, 3)
        radius = rng.uniform(2.0, 3.8)
        path = _arc(start, middle, end + rng.normal(0, 3, 3), 14)
        distance = np.minimum(distance, _tube(points, path, np.linspace(radius, 0.75 * radius, 14)))
        if rng.random() < 0.5:
            branch = _arc(path[8], path[10], path[-1] + rng.normal(0, 5, 3), 8)
            thin = np.linspace(0.8 * radius, 0.6 * radius, 8)
            distance = np.minimum(distance, _tube(points, branch, thin))
    return distance


def _neighbours(rng: Generator, points: Array) -> list[Array]:
    """The unlabelled vessels and chambers around the atrium, each at its anatomical place."""
    jitter = rng.normal(0, 1.5, (4, 3))
    ventricle = _blob(rng, points, np.array([-8, 19, -13]) + jitter[0], rng.uniform(11, 15, 3))
    right_atrium = _blob(rng, points, np.array([19, 13, -3]) + jitter[1], rng.uniform(8, 12, 3))
    below, bend, above = np.array([[0, 0, -40], [0, 0, 0], [0, 0, 40]]) + np.append(
        rng.uniform([-12, -20], [2, -15]), 0
    )
    aorta_path = _arc(below, bend + 2 * jitter[2], above, 30)
    aorta = _tube(points, aorta_path, np.full(30, rng.uniform(3.5, 5.5)))
    left, arch, right = np.array([[-40, 0, 0], [0, 12, 0], [40, 0, 0]]) + np.append(
        [0, 0], rng.uniform(14, 18)
    )
    artery_path = _arc(left, arch + 2 * jitter[3], right, 30)
    artery = _tube(points, artery_path, np.full(30, rng.uniform(3, 5)))
    return [ventricle, right_atrium, aorta, artery]


def _texture(rng: Generator, size: tuple[int, ...], sigma: float) -> Array:
    """Smooth noise of zero mean and unit variance; `sigma` in voxels."""
    smooth: Array = gaussian_filter(rng.standard_normal(size), sigma)
    smooth -= smooth.mean()
    smooth /= smooth.std()
    return smooth


def _scan(rng: Generator, points: Array, atrium: Array) -> Array:
    """Magnitude image (X, Y, Z) of the heart: tissues, bias field, Rician noise, unknown gain."""
    size = atrium.shape
    muscle = rng.uniform(0.35, 0.5)
    blood = muscle + rng.uniform(0.3, 0.6)
    image = muscle + 0.07 * _texture(rng, size, 1) + 0.08 * _texture(rng, size, 3)

    grain = 0.05 * _texture(rng, size, 2)

    def paint(distance: Array, level: float) -> None:
        inside = np.clip(0.5 - distance / 1.5, 0, 1)  # partial volume over 1.5 mm
        image[:] = (1 - inside) * image + inside * (level + grain)

    fat = 5 * (rng.uniform(0.6, 1.2) - _texture(rng, size, 3.5))
    paint(fat, blood * rng.uniform(0.8, 1.2))
    lung = rng.uniform(20, 26) - np.abs(points[..., 0]) + 3 * _texture(rng, size, 5)
    paint(lung, 0.1)

    wall = rng.uniform(0.8, 2.0)
    for neighbour in _neighbours(rng, points):
        paint(neighbour - 1.5, muscle * rng.uniform(0.8, 1.1))
        apart = np.maximum(neighbour, wall - atrium)
        paint(apart, blood * rng.uniform(0.75, 1.1))
    paint(atrium - wall, muscle * rng.uniform(0.8, 1.1))
    paint(atrium, blood)

    slope, curvature = rng.normal(0, 0.009, 3), rng.normal(0, 0.0003, 3)
    image *= np.exp(points @ slope + points**2 @ curvature)
    noise = rng.uniform(0.04, 0.09) * rng.standard_normal((2, *size))
    magnitude: Array = rng.uniform(200, 800) * np.hypot(image + noise[0], noise[1])
    return magnitude
