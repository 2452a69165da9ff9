"""Every kind of odd input that people were seen to have, in one place, and what is right for it.

Files from scanners, converters, viewers, file servers and other tools, each drawn here as a small
phantom. A data set is either sound to all commands or to none: what `inspect` passes, `train`
takes, with the channels, classes and spacing that are stated; `predict` writes segmentations that
lie on their scans in nibabel and in SimpleITK; `evaluate` knows the classes of the training. What
is refused is refused by all, with one sentence.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.distance import cdist

import odd_series as of
from dcamt import api
from dcamt.config import load_config
from dcamt.data.inspect import Inspection, inspect
from dcamt.data.prepare import read_case
from dcamt.data.volume import write_volume
from dcamt.errors import InputError
from dcamt.evaluation.evaluate import evaluate
from dcamt.runs.plan import Planned, plan_run
from odd_inputs import (
    AFFINE,
    FLAT,
    LEANING,
    NAMED,
    SHAPE,
    SPACED,
    TILT,
    TURNED,
    Array,
    add,
    along,
    beside,
    channels_first,
    colours,
    dark_below,
    dicom_cases,
    hdf5,
    in_metres,
    in_microns,
    itk,
    left_by_systems,
    linked,
    mirrored_nrrd,
    nifti,
    nnunet,
    nrrd,
    of_both,
    of_case,
    one_hot,
    over_time,
    partly_ignored,
    patched,
    plain,
    scan,
    sheared,
    slope,
    spelled_two_ways,
    swapped,
    thick,
    turned,
    two,
    unpacked,
    vectors,
    with_nan,
    without_blanks,
)
from odd_series import constant, series, volumes

NO_PLACE = "spacing 1 x 1 x 1 mm and origin 0, as in files whose geometry was lost"
DRAWN = ("background", "class_1", "class_2")
ALL = ("a", "b", "u", "v")


@dataclass(frozen=True)
class Kind:
    """A data set, and what is right for it.

    refused: what `inspect` says is wrong, one expression an error; `train` says the first one.
    misread: whether `evaluate` says it as well, for it concerns labels or dataset.json.
    warned: what both warn of, likewise. place: where the scans lie, voxel -> RAS+ mm.
    itk_place: the same for SimpleITK, where it reads another transform; None where it reads none.
    """

    draw: Callable[..., None]
    refused: tuple[str, ...] = ()
    misread: bool = False
    warned: tuple[str, ...] = ()
    cases: tuple[str, ...] = ALL
    channels: tuple[str, ...] = ("image",)
    classes: tuple[str, ...] = DRAWN
    ignore: int | None = None
    spacing: tuple[float, float, float] = (1, 1, 1.5)
    crop: bool = True
    schemes: tuple[str, ...] = ("zscore",)
    shape: tuple[int, int, int] = SHAPE
    place: Array = field(default_factory=lambda: AFFINE)
    itk_place: Array | str | None = "alike"


def nnunet_kind(*args: Any, **right: Any) -> Kind:
    """A data set that nnunet draws from ``args``."""
    return Kind(nnunet(*args), **({"channels": ("MRI",), "classes": tuple(NAMED)} | right))


TO_METRES = np.diag([1e-3, 1e-3, 1e-3, 1])
NAN = float("nan")
ODD_NAMES = ("a b.v2", "Fälle#1 & <b>[bold]x[red]", "case", "case_1", "-rf [x]")
MARKUP = ("a&b", "<i>x", "p%20q", "[red]r", "it's", "d#1?")
LONG = tuple(f"sub-hospitalname_ses-baseline_acq-mprage_run-{c}_T1w" for c in ALL)

DATA_SETS = {
    # ------------------------------------------------------------------------------------- NIfTI
    "in microns": Kind(plain(in_microns), warned=("unit is the micron; sizes were converted",)),
    "in metres": Kind(plain(in_metres), warned=("unit is the metre; sizes were converted",)),
    "in metres by the qform alone": Kind(
        plain(nifti(code=0, qform=TO_METRES @ AFFINE, unit="meter")),
        warned=("unit is the metre",)),
    "a unit a case": Kind(
        plain(of_case({"b": in_metres, "u": in_microns}, nifti())),
        warned=(r"b \(1 of 4 cases\): .* metre", r"u \(1 of 4 cases\): .* micron")),
    "a label in another unit": Kind(plain(label_of=in_metres), warned=("a, b .* label: .* metre",)),
    "ITK's vectors": Kind(
        plain(vectors, channel_names={"0": "T1", "1": "T2"}, labels=NAMED),
        channels=("T1", "T2"), classes=tuple(NAMED), schemes=("zscore",) * 2),
    "channels on a fourth axis that nothing names": Kind(
        plain(nifti(change=two)), channels=("channel_0", "channel_1"), schemes=("zscore",) * 2),
    "nii.gz that is not packed": Kind(
        plain(unpacked)),
    "sheared sform beside a sound qform": Kind(
        plain(nifti(sheared(0.02), qform=AFFINE)), place=sheared(0.02), itk_place=AFFINE,
        warned=("sform and qform .* differ .* qform is taken, as the sform is sheared",)),
    "sform turned against the qform": Kind(
        plain(nifti(TURNED, code=4, qform=AFFINE)), place=TURNED, itk_place=AFFINE,
        warned=(r"sform and qform of the header differ by up to [\d.]+ mm; the sform is taken",)),
    "sform of zeros": Kind(
        plain(patched(nifti(), (280, bytes(48)))), warned=("sform .* not usable; its qform",)),
    "sheared sform alone": Kind(
        plain(nifti(LEANING, code=2, qform_code=0)), place=LEANING, itk_place=None,
        spacing=(1, 1.0112, 1.5), warned=("axes are 8.53 degrees off a right angle",)),
    "slopes of 0, NaN and others": Kind(
        plain(of_case({"a": patched(nifti(), slope(0, 5)),
                       "b": patched(nifti(change=lambda a: a.astype(np.float64)), slope(NAN, 0)),
                       "u": patched(nifti(change=lambda a: a.astype(np.uint64)), slope(0, 0)),
                       "v": patched(nifti(change=lambda a: a.astype(np.uint16)), slope(2, -100))},
                      nifti()), label_of=nifti())),
    "labels of colours and below 0": Kind(
        plain(label_of=of_case({"a": colours,
                                "b": nifti(change=lambda a: a.astype(np.int16) - 1)},
                               nifti(change=lambda a: a * np.float32(1.0000001))), labelled="abc"),
        misread=True,
        refused=(r"labels/a\.nii\.gz: holds colours or complex", r"labels/b\.nii\.gz: .* -1 to 1")),
    "complex numbers": Kind(
        plain(nifti(change=lambda a: a.astype(np.complex64)), label_of=nifti()),
        refused=("holds colours or complex numbers",) * 4),
    "axes of length 1 behind": Kind(
        plain(nifti(change=lambda a: a[..., None]), nifti(change=lambda a: a[..., None, None]))),
    "big endian": Kind(plain(swapped)),
    "labels along flipped axes": Kind(plain(label_of=along("LPS"))),
    "labels along permuted axes": Kind(plain(label_of=along("SAL"))),
    "cases along different axes": Kind(
        plain(of_case({"a": along("LPS"), "b": along("LAS"), "u": along("RPI")}, nifti()))),
    "labels without a place": Kind(
        plain(label_of=nifti(np.eye(4))),
        refused=("labels/.*: says nothing of its place .* save it again with the other's",) * 2),
    "labels shifted by a voxel": Kind(
        plain(label_of=nifti(AFFINE + np.eye(4, k=3))), refused=(r"up to 1 mm \(1 vox",) * 2),
    "one-hot labels": Kind(
        plain(label_of=nifti(change=one_hot)),
        refused=("label is 4D .* merge one-hot",) * 2, misread=True),
    "labels a little off whole numbers": Kind(
        plain(label_of=nifti(change=lambda a: a * np.float32(0.9999)))),
    "labels of minus 0": Kind(plain(label_of=nifti(change=lambda a: np.where(a, a, -0.0)))),
    "a single slice": Kind(plain(nifti(change=lambda a: a[:, :, 5:6])), shape=(16, 15, 1)),
    "two axes": Kind(
        plain(lambda path, array: nib.save(nib.Nifti1Image(array[:, :, 5], AFFINE), path)),
        refused=(r"a volume needs three axes, but this has shape \(16, 15\)",) * 6),
    "thick slices of tiny voxels": Kind(
        plain(nifti(FLAT, change=thick)), place=FLAT, shape=(32, 30, 4), spacing=(0.4, 0.4, 8),
        warned=("voxels are more than 3 times longer along one axis",)),
    "NaN": Kind(plain(nifti(change=with_nan), nifti()), refused=("NaN or infinite",) * 4),
    "scans of one value": Kind(
        plain(of_case({"u": nifti(change=lambda a: 0 * a + 7), "v": nifti(change=lambda a: 0 * a)},
                      nifti())),
        warned=(r"u, v \(2 of 4 cases\): all intensities of a channel are equal",)),
    "nothing but background": Kind(
        plain(label_of=nifti(change=lambda a: 0 * a)),
        refused=("all labels are empty",), warned=("label holds background only",)),
    "one case": Kind(plain(labelled="a", unlabelled=""), cases=("a",)),
    "one labelled case": Kind(plain(labelled="a"), cases=("a", "u", "v")),
    "one unlabelled case": Kind(plain(unlabelled="u"), cases=("a", "b", "u")),
    "none unlabelled": Kind(plain(unlabelled=""), cases=("a", "b")),
    "none labelled": Kind(plain(labelled=""), refused=("no case has a label file",)),
    "labels where the scan is 0": Kind(
        plain(nifti(change=dark_below)), crop=False,
        warned=("labelled voxels lie where the scan is 0", "much of the scans is 0")),
    # ----------------------------------------------------------------------------- names, folders
    "names that shells and markup read": Kind(
        plain(labelled=ODD_NAMES[:3], unlabelled=ODD_NAMES[3:]), cases=tuple(sorted(ODD_NAMES))),
    "names that HTML and URLs read, validated": Kind(
        plain(labelled=MARKUP, unlabelled=""), cases=tuple(sorted(MARKUP))),
    "names longer than a terminal's line": Kind(
        plain(labelled=LONG[:2], unlabelled=LONG[2:]), cases=LONG),
    "names with spaces and dots at their ends": Kind(
        plain(labelled=("a.", "b "), unlabelled=("u..x",)), cases=("a.", "b ", "u..x")),
    "accents in one character and in two": Kind(
        beside(plain(), spelled_two_ways), cases=("b", "u", "v", "ä")),
    "endings in capitals": Kind(plain(ending=".NII.GZ")),
    "what systems leave in folders": Kind(beside(plain(), left_by_systems)),
    "links to files in a store": Kind(beside(plain(), linked)),
    "links to both files of a pair": Kind(beside(plain(itk, ending=".mhd"), linked)),
    "an empty file": Kind(
        beside(plain(), add("images/w.nii.gz", b"")), refused=(r"w\.nii\.gz: is empty",)),
    "a packed scan of another format": Kind(
        beside(plain(), add("images/w.nrrd.gz", b"x")), refused=(r"w\.nrrd\.gz: is packed",)),
    "a scan that DVC has not fetched": Kind(
        beside(plain(), add("images/w.nii.gz.dvc", b"outs:"), add("images/a.nii.gz.dvc", b"outs:")),
        refused=(r"w\.nii\.gz\.dvc: stands for w\.nii\.gz, which is not there",)),
    # ------------------------------------------------------------------------------- dataset.json
    "channels of one name": nnunet_kind(
        {"0": "CT", "1": "CT"}, channels=("CT", "CT"), schemes=("window",) * 2),
    "a channel that must stay as it is": nnunet_kind(
        {"0": "MRI", "1": "noNorm"}, channels=("MRI", "noNorm"), schemes=("zscore", "none")),
    "channels numbered 0000": nnunet_kind(
        {"0000": "FLAIR", "0001": "T1"}, channels=("FLAIR", "T1"), schemes=("zscore",) * 2),
    "regions": nnunet_kind(
        None, {"background": 0, "whole": [1, 2], "post": [2]},
        misread=True,
        refused=(r"'labels' gives 'whole' the values \[1, 2\]: a region, and regions are not",)),
    "255 to ignore": nnunet_kind(
        None, NAMED | {"ignore": 255}, partly_ignored, ignore=255),
    "no background named": nnunet_kind(None, {"ant": 1, "post": 2}),
    "a background of another name": nnunet_kind(
        None, {"0": "Clear Label", "1": "ant", "2": "post"}, warned=("names the value 0 'Clear",)),
    "classes that no label shows": nnunet_kind(
        None, NAMED | {"third": 3, "fourth": 4}, classes=(*NAMED, "third", "fourth"),
        warned=(r"class 3 \(third\)", r"class 4 \(fourth\)")),
    "named classes and nothing but background": nnunet_kind(
        None, NAMED, lambda a: 0 * a, refused=("hold background only, so there is no",),
        warned=("label holds background only", r"class 1 \(ant\)", r"class 2 \(post\)")),
    "dataset.json with a byte order mark": nnunet_kind(
        None, NAMED, np.array, lambda text: "\ufeff" + text),
    "dataset.json of Windows": nnunet_kind(
        None, NAMED, np.array, lambda text: text.replace("\n", "\r\n")),
    # --------------------------------------------------------------------- NRRD, MetaImage, HDF5
    "NRRD with channels first": Kind(
        plain(channels_first, nrrd(), ".nrrd", channel_names={"0": "T1", "1": "T2"}, labels=NAMED),
        channels=("T1", "T2"), classes=tuple(NAMED), schemes=("zscore",) * 2),
    "NRRD of several times": Kind(
        plain(over_time, nrrd(), ".nrrd"), channels=("channel_0", "channel_1"),
        schemes=("zscore",) * 2, warned=("the header calls an axis time",)),
    "labels of 3D Slicer": Kind(plain(nrrd(), ending=".nrrd", label_ending=".seg.nrrd")),
    "NIfTI with labels of 3D Slicer along flipped axes": Kind(
        plain(label_of=mirrored_nrrd, label_ending=".seg.nrrd")),
    "NRRD that tells its spacing alone": Kind(
        plain(nrrd(space=None, space_directions=None, space_origin=None, kinds=None,
                   encoding="raw", spacings="1 1 1.5"), ending=".nrrd"), place=SPACED),
    "NRRD of a scanner's space": Kind(
        plain(nrrd(space="scanner-xyz", space_origin=None), ending=".nrrd"), place=SPACED),
    "NRRD in microns": Kind(
        plain(nrrd(space_directions="(1000,0,0) (0,1000,0) (0,0,1500)",
                   space_origin="(5000,-6000,7000)", space_units='"um" "um" "um"'),
              ending=".nrrd"), warned=("the micron",)),
    "NRRD packed with bzip2": Kind(
        plain(nrrd(encoding="bzip2"), ending=".nrrd"),
        misread=True, refused=("is encoded as 'bzip2'; save it with gzip or raw",) * 6),
    "NRRD without blanks": Kind(plain(without_blanks, ending=".nrrd")),
    "packed MetaImage": Kind(plain(itk, ending=".mha")),
    "HDF5 with the channel first": Kind(
        plain(hdf5, ending=".h5"), place=np.eye(4), spacing=(1, 1, 1), warned=(NO_PLACE,)),
    "HDF5 with image and label in one folder": Kind(
        of_both, cases=("imagea_norm", "imageb_norm", "imagec_norm"), place=np.eye(4),
        spacing=(1, 1, 1), warned=(NO_PLACE,)),
    # -------------------------------------------------------------------------------------- DICOM
    "DICOM with a label of dcm2niix": Kind(dicom_cases, cases=("a", "b")),
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A data set of a kind on disk, and how a training plans it, or why it does not."""

    kind: Kind
    root: Path
    planned: Planned | None
    refusal: str


@pytest.fixture(scope="module", params=DATA_SETS)
def given(request, tmp_path_factory, write_series, tiny) -> Given:
    kind, root = DATA_SETS[request.param], tmp_path_factory.mktemp("odd") / "data"
    kind.draw(root, *([write_series] if kind.draw is dicom_cases else []))
    try:
        return Given(kind, root, plan_run(root, load_config(None, tiny), None, None), "")
    except InputError as error:
        return Given(kind, root, None, str(error))


def inspected(root: Path) -> tuple[Inspection | None, list[str], list[str]]:
    """What `inspect` finds, with errors and warnings; None where it makes out no data set."""
    try:
        found = inspect(root)
    except InputError as error:
        return None, [str(error)], []
    return found, found.errors, found.warnings


def assert_said(expected: tuple[str, ...], said: list[str]) -> None:
    assert len(said) == len(expected), said
    for pattern in expected:
        assert any(re.search(pattern, one) for one in said), (pattern, said)


def test_what_inspect_passes_train_takes_as_it_is_meant(given: Given) -> None:
    kind, planned = given.kind, given.planned
    found, errors, warnings = inspected(given.root)
    assert_said(kind.refused, errors)
    assert_said(kind.warned, warnings)
    if kind.refused:
        assert planned is None
        more = r"( \(\d+ such problems in all\))?"
        assert re.fullmatch(re.escape(errors[0]) + more, given.refusal)
        return
    assert planned is not None, given.refusal
    plan = planned.config.plan
    assert tuple(case.name for case in found.cases) == kind.cases
    for told in (found.dataset, planned.dataset, plan):
        assert (told.channels, told.classes, told.ignore) == (
            kind.channels, kind.classes, kind.ignore)  # fmt: skip
    assert plan.spacing == pytest.approx(kind.spacing, abs=1e-3)
    assert plan.crop == kind.crop
    assert tuple(how.scheme for how in plan.normalization) == kind.schemes
    assert list(planned.warnings) == warnings
    for case in planned.ready:
        if case.label_path is not None:
            means = [case.image[0][case.label == value].mean() for value in (0, 1, 2)]
            assert means == sorted(means), "the label does not lie on its scan"


def test_evaluation_reads_what_training_reads(given: Given, tmp_path) -> None:
    """Labels on their scans' voxels are perfect predictions, of the classes of the training."""
    kind = given.kind
    if given.planned is None:
        folder = given.root / ("labelsTr" if (given.root / "labelsTr").is_dir() else "labels")
        if kind.misread:
            with pytest.raises(InputError) as error:
                evaluate(folder, given.root)
            assert str(error.value).split("; ")[0] in given.refusal.replace("images/", "labels/")
        return
    dataset = given.planned.dataset
    for case in dataset.cases:
        if case.label is not None:
            image, truth = read_case(case, dataset.channels)
            values = np.where(truth.array == dataset.ignore, 0, truth.array)
            path = tmp_path / f"{case.name}.nii.gz"
            write_volume(path, values.astype(np.uint8), image.affine, image.forms)
    result = evaluate(tmp_path, given.root, metrics=["dice"])
    scored = result["per_class"]
    assert {value: row["dice"] for value, row in scored.items() if row["dice"] is not None} == {
        "1": 1, "2": 1}  # fmt: skip
    if kind.classes != DRAWN:
        assert tuple(row["class_name"] for row in scored.values()) == kind.classes[1:]


# ------------------------------------------------------------------------- where segmentations lie


def corners(affine: Array, shape: tuple[int, ...]) -> Array:
    """The corners in mm, (8, 3)."""
    index = [[i * (n - 1) for i, n in zip(c, shape, strict=True)] for c in np.ndindex(2, 2, 2)]
    return np.array([(affine @ [*one, 1])[:3] for one in index])


def assert_lies(path: Path, shape: tuple[int, ...], place: Array, itk_place: Any) -> None:
    """Whether a volume's corners are those of ``shape`` voxels at ``place``, in either program."""
    if path.name.endswith(".nii.gz"):
        image = nib.load(path)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert_same(corners(image.affine, image.shape), corners(place, shape))
    if itk_place is not None:
        volume = SimpleITK.ReadImage(str(path))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(volume.GetDirection(), (3, 3)) * volume.GetSpacing()
        affine[:3, 3] = volume.GetOrigin()
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        wanted = place if isinstance(itk_place, str) else itk_place
        assert_same(corners(affine, volume.GetSize()), corners(wanted, shape))


def assert_same(found: Array, wanted: Array) -> None:
    """Whether corners are the same, in whatever order: voxels may be stored along other axes."""
    away = cdist(found, wanted)
    assert max(away.min(0).max(), away.min(1).max()) < 1e-3, (found, wanted)


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory, tiny) -> Iterator[dict[int, Path]]:
    """A run of one channel and one of two."""
    root = tmp_path_factory.mktemp("two")
    nnunet({"0": "T1", "1": "T2"})(root / "data")
    yield {1: tiny_run, 2: api.train(root / "data", root / "run", set=tiny, quiet=True)}


def test_segmentations_of_a_data_set_lie_on_its_scans(given: Given, runs, tmp_path) -> None:
    kind = given.kind
    if given.planned is not None:
        written = api.predict(runs[len(kind.channels)], given.root, tmp_path, quiet=True)
        assert {path.name for path in written} == {f"{name}.nii.gz" for name in kind.cases}
        for path in written:
            assert_lies(path, kind.shape, kind.place, kind.itk_place)


@dataclass(frozen=True)
class Scans:
    """What `predict` is given, and what is right for it.

    refused: what it says then. noted: what it says of scans that it segments. places: where the
    segmentations lie, by name, voxel -> RAS+ mm.
    """

    draw: of.Draw
    refused: str = ""
    noted: tuple[str, ...] = ()
    places: Mapping[str, Array] = field(default_factory=lambda: {"scan": AFFINE})
    format: str = "nii.gz"


def saved(array: Array, affine: Array = AFFINE, unit: str = "mm") -> Callable[[Path], None]:
    return lambda path: nifti(affine, unit=unit)(path, array)


TINY_VOXELS = np.diag([40.0, 40, 40, 1])
BESIDE = "files beside the slices that are no part of a volume and were passed over: "
SCANS = {
    "names that end in four digits": Scans(
        volumes(knee_0000=saved(scan()), knee_2019=saved(scan(1))),
        places={"knee_0000": AFFINE, "knee_2019": AFFINE}),
    "scans of one value": Scans(
        volumes(c=saved(constant(9)), z=saved(constant(0))), noted=("all intensities .* equal",),
        places={"c": AFFINE, "z": AFFINE}),
    "a scan in microns before a sound one": Scans(
        volumes(a=saved(scan(), TINY_VOXELS, "micron"), z=saved(scan())),
        noted=("a: .* micron",), places={"a": np.diag([0.04, 0.04, 0.04, 1]), "z": AFFINE}),
    "files of viewers beside slices": Scans(
        series(then=of.left_by_viewers("Thumbs.db", "desktop.ini", "autorun.inf", "README")),
        noted=(f"{BESIDE}4",)),
    "one Thumbs.db beside slices": Scans(
        series(then=of.thumbnails),
        noted=(f"{BESIDE}1",)),
    "a dose page among slices": Scans(
        series(then=of.another_image(**of.DOSE)), noted=(f"{BESIDE}1",)),
    "a localizer among slices": Scans(
        series(then=of.another_image(**of.SCOUT)), noted=(f"{BESIDE}1",)),
    "copies of slices": Scans(
        series(then=of.copies), noted=("copies of slices that were left out: 2",)),
    "slices without endings, and a DICOMDIR": Scans(series(then=of.without_endings)),
    "slices without preamble": Scans(series(then=of.bare)),
    "slices without a transfer syntax": Scans(series(then=of.without_syntax)),
    "big endian slices": Scans(series(then=of.big_endian)),
    "RLE": Scans(series(of.run_length)),
    "JPEG 2000 of ITK": Scans(of.jpeg_2000, places={"scan": SPACED}),
    "PET": Scans(series(of.positron)),
    "PET in RLE": Scans(series(of.positron, of.run_length)),
    "a thickness that is no distance": Scans(
        series(of.elements(SliceThickness="5", SpacingBetweenSlices="-2"))),
    "no pixel spacing": Scans(
        series(of.elements(PixelSpacing=None)), refused="lacks PixelSpacing, .* export the series"),
    "spacing on the detector alone": Scans(
        series(of.elements(ImagerPixelSpacing=["1", "1"], PixelSpacing=None)),
        refused="lacks PixelSpacing, .* export the series"),
    "a missing slice": Scans(
        series(then=lambda folder: of.slices(folder)[5].unlink()),
        refused="slices are missing: most lie 1.5 mm apart, but two 3 mm; copy the whole"),
    "two points in time": Scans(
        series(then=of.again), refused="several slices lie at one place, as with several time"),
    "all slices in one file": Scans(
        series(then=of.in_one_file), refused="is multi-frame; export the series as one file per"),
    "a tilted gantry": Scans(
        series(affine=TILT), refused="15 degrees off a right angle, .* .--format nrrd or mha"),
    "a tilted gantry, as NRRD": Scans(
        series(affine=TILT), places={"scan": TILT}, format="nrrd", noted=("15 degrees off",)),
    "a tilted gantry, as MetaImage": Scans(
        series(affine=TILT), places={"scan": TILT}, format="mha", noted=("15 degrees off",)),
}  # fmt: skip


def test_what_is_alike_in_several_scans_is_noted_once(tiny_run, tmp_path, capsys) -> None:
    for name, degrees in (("a", 10), ("b", 20)):
        nifti(turned(degrees), qform=AFFINE)(tmp_path / f"{name}.nii.gz", scan())
    api.predict(tiny_run, tmp_path, tmp_path / "out")
    assert capsys.readouterr().err.count("sform and qform of the header differ") == 1


@pytest.mark.parametrize("name", SCANS)
def test_segmentations_lie_on_odd_scans(name, tiny_run, tmp_path, write_series, capsys) -> None:
    kind, out = SCANS[name], tmp_path / "out"
    folder = kind.draw(tmp_path, write_series)
    before = sorted(path.name for path in folder.iterdir())
    capsys.readouterr()
    if kind.refused:
        with pytest.raises(InputError, match=kind.refused):
            api.predict(tiny_run, folder, out, format=kind.format)
        assert not list(out.rglob(f"*.{kind.format}"))
        assert capsys.readouterr().err == ""
    else:
        written = api.predict(tiny_run, folder, out, format=kind.format)
        assert {path.name.removesuffix(f".{kind.format}") for path in written} == {*kind.places}
        for path in written:
            place = kind.places[path.name.removesuffix(f".{kind.format}")]
            assert_lies(path, SHAPE, place, "alike")
        err = " ".join(capsys.readouterr().err.splitlines())
        notes = [note.split(" 1/")[0] for note in err.split("note: ")[1:]]
        assert_said(kind.noted, notes)
    assert sorted(path.name for path in folder.iterdir()) == before
