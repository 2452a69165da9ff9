import itertools
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.inferers.utils import sliding_window_inference
from scipy.spatial.transform import Rotation

from dcamt import api
from dcamt.config import PredictConfig
from dcamt.data.scans import find_scans
from dcamt.data.volume import read_image, write_volume
from dcamt.errors import InputError
from dcamt.files import LOCK, holds
from dcamt.inference.predict import SUMMARY, disagreement, entropy
from dcamt.inference.predictor import Predictor, make_predictor
from dcamt.inference.sliding_window import branch_probabilities, window_overlap
from dcamt.runs.build import load_run
from dcamt.runs.predict import RECORD
from dcamt.runs.summary import CSV, JSON

CPU = torch.device("cpu")


def oblique(spacing, degrees=(10, -25, 5), flips=(1, 1, 1), order=(0, 1, 2)):
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3] = (turn @ np.diag(flips))[:, order] @ np.diag(spacing)
    affine[:3, 3] = (-80.25, 33.5, 12)
    return affine


GEOMETRIES = {
    "plain": oblique((1, 1, 1), (0, 0, 0)),
    "oblique": oblique((1, 1, 1.5)),
    "flipped": oblique((0.9, 0.9, 2), (0, 0, 0), (-1, -1, 1)),
    "left-handed": oblique((1, 1.2, 1), flips=(-1, 1, 1)),
    "permuted": oblique((1, 1, 2), (3, 2, 1), order=(2, 0, 1)),
    "anisotropic": oblique((0.7, 0.7, 5), (0, 0, 0)),
}


def scan(path, affine, shape=(24, 20, 17), seed=0):
    values = np.random.default_rng(seed).normal(300, 60, shape)
    write_volume(path, np.rint(values).astype(np.int16), affine)
    return path


def assert_same_geometry(output, source):
    one, two = nib.load(output), nib.load(source)
    assert one.shape == two.shape
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-5)
    np.testing.assert_allclose(one.get_sform(), one.get_qform(), atol=1e-4)
    assert one.header.get_xyzt_units()[0] == "mm"
    itk, other = sitk.ReadImage(str(output)), sitk.ReadImage(str(source))
    assert itk.GetSize() == other.GetSize()
    for found, expected in (
        (itk.GetOrigin(), other.GetOrigin()),
        (itk.GetSpacing(), other.GetSpacing()),
        (itk.GetDirection(), other.GetDirection()),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.fixture(scope="module")
def method(tiny_run):
    config, trained = load_run(tiny_run)
    return config, trained.eval()


@pytest.fixture(scope="module")
def predictor(method):
    config, trained = method
    return make_predictor(trained, config.plan, CPU)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_output_lies_where_the_scan_lies(tiny_run, tmp_path, name):
    source = scan(tmp_path / "case.nii.gz", GEOMETRIES[name])
    (output,) = api.predict(
        tiny_run, source, tmp_path / "out", probabilities=True, uncertainty=True, quiet=True
    )
    assert output == tmp_path / "out" / "case.nii.gz"
    files = {str(p.relative_to(output.parent)): p for p in output.parent.rglob("*.nii.gz")}
    assert files.keys() == {
        "case.nii.gz",
        "probabilities/case_background.nii.gz",
        "probabilities/case_atrium.nii.gz",
        "uncertainty/case_entropy.nii.gz",
        "uncertainty/case_disagreement.nii.gz",
    }
    for path in files.values():
        assert_same_geometry(path, source)
    assert nib.load(output).get_data_dtype() == np.uint8


def test_the_content_lies_where_the_scan_shows_it(tiny_run, tmp_path, monkeypatch):
    """With a method that calls bright voxels the organ, the organ comes back in place."""
    _, trained = load_run(tiny_run)

    def bright(self, image):
        organ = torch.sigmoid(20 * (image - 1))
        return torch.cat([1 - organ, organ], 1)[None].repeat(2, 1, 1, 1, 1, 1)

    monkeypatch.setattr(type(trained), "branches", bright)
    for name, affine in GEOMETRIES.items():
        grid = np.stack(np.meshgrid(*map(np.arange, (26, 22, 18)), indexing="ij"), -1)
        world = (grid - (15, 8, 10)) @ affine[:3, :3].T
        organ = np.linalg.norm(world, axis=-1) < 6
        values = np.where(organ, 1000, 10).astype(np.int16)
        write_volume(tmp_path / f"{name}.nii.gz", values, affine)
        api.predict(tiny_run, tmp_path / f"{name}.nii.gz", tmp_path / "out", quiet=True)
        found = nib.load(tmp_path / "out" / f"{name}.nii.gz").get_fdata() > 0
        assert 2 * (found & organ).sum() / (found.sum() + organ.sum()) > 0.9


def test_maps_are_what_they_say(tiny_run, tmp_path, method):
    values = np.random.default_rng(2).normal(300, 60, (24, 22, 18)).astype(np.float32)
    values[:3] = values[:, :, -2:] = 0  # content ends before the volume does
    write_volume(tmp_path / "a.nii.gz", values, GEOMETRIES["oblique"])
    api.predict(tiny_run, tmp_path / "a.nii.gz", tmp_path / "out", probabilities=True,
                uncertainty=True, quiet=True)  # fmt: skip

    def load(part):
        image = nib.load(tmp_path / "out" / f"{part}.nii.gz")
        return image, np.asarray(image.dataobj)

    probabilities = [load(f"probabilities/a_{name}") for name in ("background", "atrium")]
    assert all(image.get_data_dtype() == np.float32 for image, _ in probabilities)
    maps = np.stack([array for _, array in probabilities])
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-5)
    assert maps.min() >= 0
    np.testing.assert_array_equal(load("a")[1], maps.argmax(0))
    for name in ("entropy", "disagreement"):
        array = load(f"uncertainty/a_{name}")[1]
        assert array.min() >= 0
        assert array.max() <= 1
        assert array[3:, :, :-2].max() > 0
        assert not array[:3].any()  # nothing there to be unsure of
    assert (maps[0][:3] == 1).all()


def test_without_asking_only_the_segmentation_and_its_numbers_are_written(tiny_run, tmp_path):
    scan(tmp_path / "in" / "a.nii.gz", np.eye(4))
    api.predict(tiny_run, tmp_path / "in", tmp_path / "out", quiet=True)
    found = {p.name for p in (tmp_path / "out").iterdir()}
    assert found == {"a.nii.gz", SUMMARY, CSV, JSON, RECORD, LOCK}


def test_largest_component_reaches_the_file(tiny_run, tmp_path, monkeypatch):
    _, trained = load_run(tiny_run)

    def everywhere(self, image):
        organ = (image > 0).float()
        return torch.cat([1 - organ, organ], 1)[None]

    monkeypatch.setattr(type(trained), "branches", everywhere)
    values = np.full((24, 20, 16), 10, np.int16)
    values[3:9, 3:9, 3:9] = values[15:19, 12:15, 8:11] = 500
    config = load_run(tiny_run)[0]
    # On the run's own grid, so that nothing is resampled.
    write_volume(tmp_path / "a.nii.gz", values, np.diag([*config.plan.spacing, 1]))
    for name, wanted in (("all", False), ("one", True)):
        api.predict(tiny_run, tmp_path / "a.nii.gz", tmp_path / name, largest_component=wanted,
                    quiet=True)  # fmt: skip
    whole, one = (
        np.asarray(nib.load(tmp_path / name / "a.nii.gz").dataobj) for name in ("all", "one")
    )
    np.testing.assert_array_equal(whole, values == 500)
    expected = np.zeros_like(whole)
    expected[3:9, 3:9, 3:9] = 1
    np.testing.assert_array_equal(one, expected)


def test_a_volume_of_the_patchs_size_is_predicted_directly(method, predictor):
    config, trained = method
    patch = config.plan.patch
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *patch)).astype(np.float32))
    windows = branch_probabilities(predictor, image, patch, 2, config.predict)
    with torch.no_grad():
        direct = trained.branches(image[None])[:, 0]
    assert windows.shape == (2, 2, *patch)
    torch.testing.assert_close(windows, direct, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(5, 7, 3), (16, 9, 30), (33, 20, 17)])
def test_windows_cover_volumes_of_any_size(method, predictor, shape):
    config, _ = method
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))
    found = branch_probabilities(predictor, image, config.plan.patch, 2, config.predict)
    assert found.shape == (2, 2, *shape)
    torch.testing.assert_close(found.sum(1), torch.ones(2, *shape), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(16, 16, 16), (5, 27, 33), (40, 19, 16)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"overlap": 0.0, "batch": 1},
        {"overlap": 0.8, "batch": 5},
        {"stride": (3, 16, 7), "weighting": "constant"},
    ],
)
def test_windows_are_those_of_monai(shape, settings):
    """Positions, weights, padding and sums: the result is the same to the last bit."""

    def two(batch):
        edges = torch.stack([batch.cumsum(2), -batch.flip(3).cumsum(4)], 1)[:, :, 0]
        return torch.stack([edges.softmax(1), edges.sigmoid()])

    config = PredictConfig(**settings)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    expected = sliding_window_inference(
        image[None],
        (16, 16, 16),
        config.batch,
        lambda batch: two(batch).transpose(0, 1).flatten(1, 2),
        overlap=window_overlap((16, 16, 16), config),
        mode=config.weighting,
    )[0].unflatten(0, (2, 2))
    found = branch_probabilities(Predictor(two, CPU, 2), image, (16, 16, 16), 2, config)
    assert torch.equal(found, expected)


def test_windows_tell_how_many_of_them_are_done():
    told = []
    image, patch = torch.zeros(1, 40, 16, 16), (16, 16, 16)
    branch_probabilities(
        Predictor(lambda batch: batch[None], CPU),
        image,
        patch,
        1,
        PredictConfig(overlap=0.5, batch=3),
        observe=lambda done, total: told.append((done, total)),
    )
    assert told == [(3, 4), (4, 4)]


def test_windows_keep_branch_and_class_apart():
    """Branches and classes of known values come back under their own index."""

    def fixed(image):
        ramp = image[:, 0]  # differs between the windows of one call
        return torch.stack(
            [torch.stack([ramp + 10 * n + k for k in range(3)], 1) for n in range(2)]
        )

    image = torch.arange(20.0 * 18 * 17).reshape(1, 20, 18, 17)
    settings = PredictConfig(batch=3)
    found = branch_probabilities(Predictor(fixed, CPU, 2), image, (16, 16, 16), 3, settings)
    for n, k in itertools.product(range(2), range(3)):
        torch.testing.assert_close(found[n, k], image[0] + 10 * n + k, atol=1e-2, rtol=1e-5)


def test_neighbouring_windows_agree_where_they_overlap(method, predictor):
    """More overlap moves the probabilities a little, not a lot."""
    config, _ = method
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 30, 20, 18))).float()
    few, many = (
        branch_probabilities(predictor, image, config.plan.patch, 2, PredictConfig(overlap=o))
        for o in (0.25, 0.75)
    )
    assert (few - many).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("patch", "stride", "starts"),
    [
        ((112, 112, 80), (18, 18, 4), [[0, 18, 36, 48], [0, 18, 28], [0, 4, 8, 10]]),
        ((112, 112, 80), (112, 112, 80), [[0, 48], [0, 28], [0, 10]]),
        ((48, 64, 48), (16, 21, 47), [[0, 16, 32, 48, 64, 80, 96, 112], [0, 21, 42, 63, 76],
                                      [0, 42]]),
    ],
)  # fmt: skip
def test_a_stride_in_voxels_is_kept_exactly(patch, stride, starts):
    """Where the windows begin along each axis, the last one moved back to the edge."""
    shape = (160, 140, 90)
    image = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    corners = []

    def note(batch):
        corners.extend(int(value) for value in batch[:, 0, 0, 0, 0])
        return torch.zeros_like(batch)[None]

    settings = PredictConfig(stride=stride, weighting="constant", batch=3)
    branch_probabilities(Predictor(note, CPU), image, patch, 1, settings)
    found = np.array(np.unravel_index(corners, shape))
    assert [sorted(set(axis)) for axis in found.tolist()] == starts
    assert len(corners) == np.prod([len(axis) for axis in starts])


def test_weighting_decides_how_windows_are_averaged():
    """Two windows of 16 voxels that share 8: one says 0, the other 1."""
    image = torch.zeros(1, 24, 16, 16)
    image[:, 8:] = 1e-3
    image[:, 0], image[:, 23] = 0, 1

    def last_voxel(batch):
        return batch[:, :, -1:].round().expand(batch.shape)[None].clone()

    curves = {}
    for weighting in ("constant", "gaussian"):
        settings = PredictConfig(stride=(8, 16, 16), weighting=weighting)
        found = branch_probabilities(
            Predictor(last_voxel, CPU), image, (16, 16, 16), 1, settings
        )  # fmt: skip
        curves[weighting] = found[0, 0, :, 8, 8]
    torch.testing.assert_close(curves["constant"][8:16], torch.full((8,), 0.5))
    assert (curves["gaussian"][8:16].diff() > 0).all()
    for curve in curves.values():
        assert not curve[:8].any()
        torch.testing.assert_close(curve[16:], torch.ones(8))


def test_the_mean_of_the_branches_may_be_taken_window_by_window():
    def two(batch):
        return torch.stack([batch.softmax(1), (2 * batch).softmax(1)])

    image = torch.randn(3, 20, 24, 16)
    predictor, settings = Predictor(two, CPU, 2), PredictConfig()
    both = branch_probabilities(predictor, image, (16, 16, 16), 3, settings)
    mean = branch_probabilities(predictor, image, (16, 16, 16), 3, settings, mean=True)
    assert both.shape == (2, 3, 20, 24, 16) and mean.shape == (1, 3, 20, 24, 16)
    torch.testing.assert_close(mean[0], both.mean(0))


def test_a_stride_that_skips_voxels_is_refused(tiny_run, tmp_path):
    source = scan(tmp_path / "a.nii.gz", np.eye(4))
    with pytest.raises(InputError, match=r"stride = \[17, 8, 8\] skips voxels.*\[16, 16, 16\]"):
        api.predict(tiny_run, source, tmp_path / "out", stride=(17, 8, 8), quiet=True)
    with pytest.raises(InputError, match="stride"):
        api.predict(tiny_run, source, tmp_path / "out", stride=(0, 8, 8), quiet=True)


def test_given_overlap_wins_over_the_runs_stride(tiny_run, tmp_path, phantoms):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = (run / "config.yaml").read_text()
    assert "stride: null" in config
    (run / "config.yaml").write_text(config.replace("stride: null", "stride: [1, 1, 1]"))
    source = phantoms / "imagesTr" / "phantom_000.nii.gz"
    maps = {}
    for name, where, options in (
        ("run", run, {}),
        ("given", tiny_run, {"stride": (1, 1, 1)}),
        ("overlap", run, {"overlap": 0.5}),
        ("default", tiny_run, {}),
    ):
        api.predict(where, source, tmp_path / name, probabilities=True, quiet=True, **options)
        maps[name] = nib.load(
            tmp_path / name / "probabilities" / "phantom_000_atrium.nii.gz"
        ).get_fdata()
    np.testing.assert_array_equal(maps["run"], maps["given"])
    np.testing.assert_array_equal(maps["overlap"], maps["default"])
    assert not np.array_equal(maps["run"], maps["default"])


def test_maps_that_would_have_one_name_are_refused(phantoms, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("[background, atrium]", "[T1+, T1*]"))
    source, out = phantoms / "imagesTr" / "phantom_000.nii.gz", tmp_path / "out"
    with pytest.raises(InputError, match="named phantom_000_T1_"):
        api.predict(run, source, out, probabilities=True, quiet=True)
    assert not out.exists()
    api.predict(run, source, out, quiet=True)


def test_entropy_against_a_slow_reference():
    p = torch.from_numpy(np.random.default_rng(0).dirichlet((0.3,) * 4, (3, 4, 5))).movedim(-1, 0)
    found = entropy(p)
    for voxel in np.ndindex(3, 4, 5):
        values = [float(p[(k, *voxel)]) for k in range(4)]
        expected = -sum(v * np.log(v) for v in values if v > 0) / np.log(4)
        assert float(found[voxel]) == pytest.approx(expected, abs=1e-6)
    flat, sure = torch.full((4, 1, 1, 1), 0.25), torch.zeros(4, 1, 1, 1)
    sure[2] = 1
    assert float(entropy(flat)) == pytest.approx(1)
    assert float(entropy(sure)) == pytest.approx(0, abs=1e-6)


def test_disagreement_is_the_total_variation_of_two_branches():
    rng = np.random.default_rng(0)
    p, q = (torch.from_numpy(rng.dirichlet((0.4,) * 3, (4, 5, 6))).movedim(-1, 0) for _ in "pq")
    found = disagreement(torch.stack([p, q]))
    torch.testing.assert_close(found, 0.5 * (p - q).abs().sum(0))
    assert not disagreement(p[None]).any()
    assert not disagreement(torch.stack([p, p])).any()
    one, two = torch.eye(2)[:, :, None, None, None].expand(2, 2, 1, 1, 1)
    assert float(disagreement(torch.stack([one, two]))) == 1


def test_prediction_is_the_same_every_time(tiny_run, tmp_path):
    source = scan(tmp_path / "a.nii.gz", GEOMETRIES["oblique"])
    for name in ("one", "two"):
        api.predict(tiny_run, source, tmp_path / name, probabilities=True, quiet=True)
    first = sorted((tmp_path / "one").rglob("*.nii.gz"))
    second = sorted((tmp_path / "two").rglob("*.nii.gz"))
    assert len(first) == len(second) == 3
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(nib.load(one).get_fdata(), nib.load(two).get_fdata())


def test_what_exists_is_refused_and_stays(tiny_run, tmp_path):
    for name in ("a", "b"):
        scan(tmp_path / "in" / f"{name}.nii.gz", np.eye(4))
    old = tmp_path / "out" / "b.nii.gz"
    old.parent.mkdir()
    old.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"b\.nii\.gz.*exists.*--resume"):
        api.predict(tiny_run, tmp_path / "in", tmp_path / "out", quiet=True)
    assert [p.name for p in old.parent.iterdir()] == ["b.nii.gz"]

    with pytest.raises(InputError, match=r"b\.nii\.gz.*no predict\.json says what made it"):
        api.predict(tiny_run, tmp_path / "in", tmp_path / "out", resume=True, quiet=True)
    assert old.read_bytes() == b"mine"
    assert [p.name for p in old.parent.iterdir()] == ["b.nii.gz"]


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"format": "mha"}])
def test_the_input_folder_is_not_written_to(tiny_run, tmp_path, options):
    source = scan(tmp_path / "a_0000.nii.gz", np.eye(4))
    for input in (tmp_path, source):
        with pytest.raises(InputError, match="folder of the scans"):
            api.predict(tiny_run, input, tmp_path, quiet=True, **options)
    assert list(tmp_path.iterdir()) == [source]


def test_labels_are_not_written_among(tiny_run, tmp_path, phantoms):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    before = sorted((data / "labelsTr").iterdir())
    one = data / "imagesTr" / "phantom_000.nii.gz"
    for input in (data, data / "imagesTr", one):
        for out in ("labelsTr", "imagesTr/new", "labelsTr/new"):
            with pytest.raises(InputError, match="of the data set"):
                api.predict(tiny_run, input, data / out, resume=True, quiet=True)
    assert sorted((data / "labelsTr").iterdir()) == before


def test_nothing_of_a_data_set_is_said_to_be_passed_over(tiny_run, phantoms, tmp_path, capsys):
    api.predict(tiny_run, phantoms, tmp_path / "out")
    assert "further down" not in capsys.readouterr().err


def test_a_folder_within_the_scans_may_be_written_to(tiny_run, tmp_path, capsys):
    scan(tmp_path / "a.nii.gz", np.eye(4))
    for resume in (False, True):
        api.predict(tiny_run, tmp_path, tmp_path / "out", resume=resume, quiet=True)
    api.predict(tiny_run, tmp_path, tmp_path / "more" / "deep", resume=resume, quiet=True)
    assert capsys.readouterr().err == ""
    outputs = api.predict(tiny_run, tmp_path, tmp_path / "other")
    assert [path.name for path in outputs] == ["a.nii.gz"]
    told = capsys.readouterr().err
    for folder in ("out", "more"):
        assert f"{tmp_path / folder}: holds scans further down" in told
    with pytest.raises(InputError, match="further down"):
        api.predict(tiny_run, tmp_path / "more", tmp_path / "last", quiet=True)


@pytest.mark.parametrize("broken", ["a", "ac"])
def test_a_damaged_scan_does_not_keep_the_others(tiny_run, tmp_path, broken):
    for name in ("a", "b", "c"):
        path = scan(tmp_path / "in" / f"{name}.nii.gz", np.eye(4))
        if name in broken:
            path.write_bytes(path.read_bytes()[:-100])
    words = r"a\.nii\.gz.*damaged" + (r".*no segmentation either: c" if broken == "ac" else "")
    for resume in (False, True):
        with pytest.raises(InputError, match=words):
            api.predict(tiny_run, tmp_path / "in", tmp_path / "out", resume=resume, quiet=True)
        found = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
        assert found == {f"{name}.nii.gz" for name in "abc" if name not in broken}


def test_one_channel_of_several_is_no_scan(tmp_path):
    for channel in (0, 1):
        scan(tmp_path / f"a_000{channel}.nii.gz", np.eye(4))
    with pytest.raises(InputError, match="one of the 2 channels"):
        find_scans(tmp_path / "a_0000.nii.gz", 2)
    assert [len(case.images) for case in find_scans(tmp_path, 2)] == [2]


def test_a_scan_with_more_channels_is_refused(tiny_run, tmp_path):
    image = nib.Nifti1Image(np.ones((16, 16, 16, 2), np.float32), np.eye(4))
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(
        InputError, match=r"a\.nii\.gz.*channels is 2, but the run was trained on 1"
    ):
        api.predict(tiny_run, tmp_path / "a.nii.gz", tmp_path / "out", quiet=True)
    assert not holds(tmp_path / "out")


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 3.0])
def test_an_impossible_overlap_is_refused(tiny_run, tmp_path, overlap):
    source = scan(tmp_path / "a.nii.gz", np.eye(4))
    with pytest.raises(InputError, match="overlap"):
        api.predict(tiny_run, source, tmp_path / "out", overlap=overlap, quiet=True)


def test_files_folders_and_data_sets_are_accepted(tiny_run, tmp_path, phantoms):
    one = api.predict(
        tiny_run, phantoms / "imagesTr" / "phantom_001.nii.gz", tmp_path / "one", quiet=True
    )
    folder = api.predict(tiny_run, phantoms / "imagesTr", tmp_path / "folder", quiet=True)
    dataset = api.predict(tiny_run, phantoms, tmp_path / "set", quiet=True)
    assert [p.name for p in one] == ["phantom_001.nii.gz"]
    names = [f"phantom_{i:03d}.nii.gz" for i in range(6)]
    assert [p.name for p in folder] == [p.name for p in dataset] == names
    arrays = [nib.load(p).get_fdata() for p in (one[0], folder[1], dataset[1])]
    np.testing.assert_array_equal(arrays[0], arrays[1])
    np.testing.assert_array_equal(arrays[0], arrays[2])


def test_a_channel_number_is_no_part_of_the_name(tiny_run, tmp_path):
    scan(tmp_path / "in" / "a_0000.nii.gz", np.eye(4))
    outputs = api.predict(tiny_run, tmp_path / "in", tmp_path / "out", quiet=True)
    assert [p.name for p in outputs] == ["a.nii.gz"]


def test_best_weights_are_used_when_asked_for(tiny_run, tmp_path, phantoms, tiny):
    with pytest.raises(InputError, match=r"best\.safetensors"):
        api.predict(tiny_run, phantoms, tmp_path / "out", weights="best", quiet=True)
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    other = api.train(phantoms, tmp_path / "other", splits=phantoms / "splits.json",
                      set=[*tiny, "seed=5"], quiet=True)  # fmt: skip
    shutil.copy(other / "last.safetensors", run / "best.safetensors")
    source = phantoms / "imagesTr" / "phantom_000.nii.gz"
    arrays = {}
    for weights in ("last", "best"):
        api.predict(run, source, tmp_path / weights, weights=weights, probabilities=True,
                    quiet=True)  # fmt: skip
        path = tmp_path / weights / "probabilities" / "phantom_000_atrium.nii.gz"
        arrays[weights] = nib.load(path).get_fdata()
    assert not np.allclose(arrays["last"], arrays["best"])


def test_the_runs_own_validation_is_what_predict_gives(tiny_run, phantoms, tmp_path):
    (name,) = [p.name for p in (tiny_run / "validation").glob("*.nii.gz")]
    api.predict(tiny_run, phantoms / "imagesTr" / name, tmp_path / "out", quiet=True)
    found, expected = (
        nib.load(f / name).get_fdata() for f in (tmp_path / "out", tiny_run / "validation")
    )
    np.testing.assert_array_equal(found, expected)


def dicom_series(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize(
    "source", ["dicom/hippocampus_crop", "dicom/brain_t1_oblique", "nrrd/brain1_image.nrrd"]
)
def test_converted_clinical_scans_keep_their_geometry(real_data, tiny_run, tmp_path, source):
    path = real_data / source
    if not path.exists():
        pytest.skip(f"{source} is absent from the real volumes")
    image = dicom_series(path) if path.is_dir() else sitk.ReadImage(str(path))
    # A block of it is enough, and much faster; ITK moves the origin along.
    size = [min(n, 24) for n in image.GetSize()]
    start = [(n - s) // 2 for n, s in zip(image.GetSize(), size, strict=True)]
    image = sitk.RegionOfInterest(sitk.Cast(image, sitk.sitkFloat32), size, start)
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    (output,) = api.predict(tiny_run, tmp_path / "scan.nii.gz", tmp_path / "out", quiet=True)
    assert_same_geometry(output, tmp_path / "scan.nii.gz")
    # ... and the geometry is that of the source, not only of the conversion.
    itk = sitk.ReadImage(str(output))
    np.testing.assert_allclose(itk.GetOrigin(), image.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(itk.GetDirection(), image.GetDirection(), atol=1e-5)
    assert read_image([output]).shape == tuple(size)
