"""A run as a MONAI Bundle: MONAI alone segments with it as predict does."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from dcamt import api
from dcamt.config import Normalization, Plan
from dcamt.data.space import to_network
from dcamt.data.volume import read_image
from dcamt.errors import InputError
from dcamt.inference import graph
from dcamt.records.run_folder import RunConfig
from dcamt.runs import export_bundle

pytestmark = pytest.mark.filterwarnings("ignore")  # of TorchScript, which is no longer developed


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "out"
    assert api.export(tiny_run, out, format="bundle") == [out / "models" / "model.ts"]
    return out


def scans(source, folder):
    folder.mkdir()
    (folder / "scan.nii.gz").symlink_to(source)
    return folder


def share_equal(found, expected):
    found, expected = nib.load(found), nib.load(expected)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
    found, expected = np.asarray(found.dataobj), np.asarray(expected.dataobj)
    assert found.dtype == np.uint8 and len(np.unique(expected)) > 1
    return (found == expected).mean()


def test_monai_segments_as_predict_does(exported, tiny_run, phantoms, tmp_path):
    pytest.importorskip("fire", reason="fire is not installed: pip install 'dcamt[bundle]'")
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    (expected,) = api.predict(tiny_run, scan, tmp_path / "predict", quiet=True)
    folder = scans(scan, tmp_path / "scans")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
         "--dataset_dir", folder, "--output_dir", tmp_path / "out"],
        cwd=exported, env=environment, check=True,
    )  # fmt: skip
    assert share_equal(tmp_path / "out" / "scan_seg.nii.gz", expected) > 0.9999


def test_it_follows_every_plan(other_plan, turned_scan, tmp_path):
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    api.export(other_plan, bundle, format="bundle")
    (expected,) = api.predict(other_plan, turned_scan, tmp_path / "predict", quiet=True)
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"), workflow_type="infer", logging_file=False,
        bundle_root=str(bundle), output_dir=str(out),
        dataset_dir=str(scans(turned_scan, tmp_path / "scans")),
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    assert share_equal(out / "scan_seg.nii.gz", expected) > 0.999


TWO_CHANNELS = Plan(
    channels=("T1", "CT"), classes=("background", "tumour"), ignore=None, orientation="LPS",
    spacing=(1.5, 0.7, 1.1), crop=True, patch=(16, 16, 16),
    normalization=(
        Normalization(masked=True),
        Normalization(scheme="window", low=10, high=200, mean=90, std=40),
    ),
)  # fmt: skip


def test_channels_in_files_of_their_own_become_one_image(turned_scan, tmp_path):
    image = nib.load(turned_scan)
    values = image.get_fdata(dtype=np.float32)
    files = []
    for case in ("a", "b"):
        for channel, changed in enumerate((values, values[::-1] * (values > 0))):
            files.append(tmp_path / f"{case}_{channel:04}.nii.gz")
            nib.save(nib.Nifti1Image(changed, image.affine), files[-1])
    expected, _ = to_network(read_image(files[:2]), TWO_CHANNELS)
    turned_scan.unlink()
    parser = ConfigParser(export_bundle.workflow(RunConfig(plan=TWO_CHANNELS)))
    parser["dataset_dir"] = str(tmp_path)
    assert parser.get_parsed_content("datalist") == [
        [str(path) for path in files[:2]], [str(path) for path in files[2:]]
    ]  # fmt: skip
    found = parser.get_parsed_content("dataset")[0]["image"]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def of_two_channels(folder, out=None):
    """The bundle's own steps around a network that takes what is bright in T1 for the tumour."""
    parser = ConfigParser(export_bundle.workflow(RunConfig(plan=TWO_CHANNELS)))
    parser["network_def"] = "$lambda x: torch.cat([-x[:, :1], x[:, :1]], 1)"
    parser["dataset_dir"], parser["output_dir"] = str(folder), str(out)
    return parser


def test_four_digits_may_also_be_the_number_of_a_case(turned_scan, tmp_path):
    image = nib.load(turned_scan)
    values = image.get_fdata(dtype=np.float32)
    turned_scan.unlink()
    both = nib.Nifti1Image(np.stack([values, values], -1), image.affine)
    files = [str(tmp_path / f"case_{number:04}.nii.gz") for number in (0, 1, 2)]
    for numbered in (files[1:], files[1:2], files):
        for path in numbered:
            nib.save(both, path)
        parser = of_two_channels(tmp_path)
        assert parser.get_parsed_content("datalist") == numbered
        assert parser.get_parsed_content("dataset")[0]["image"].shape[0] == 2
        for path in numbered:
            Path(path).unlink()


def test_a_scan_of_other_channels_is_refused(turned_scan, tmp_path):
    image = nib.load(turned_scan)
    values = image.get_fdata(dtype=np.float32)
    for count in (1, 3):
        array = np.stack([values] * count, -1) if count > 1 else values
        nib.save(nib.Nifti1Image(array, image.affine), turned_scan)
        with pytest.raises(RuntimeError) as error:
            of_two_channels(tmp_path).get_parsed_content("dataset")[0]
        assert "each scan must have 2 channels" in repr(error.getrepr(chain=True))


def test_files_of_two_channels_may_lie_in_any_way(tmp_path):
    """Sagittal: the first axis of the file points to the front."""
    affine = np.array([[0, 0, 1.5, 3], [1.5, 0, 0, -7], [0, 1.5, 0, 2], [0, 0, 0, 1.0]])
    values = np.random.default_rng(0).normal(50, 10, (20, 24, 18)).astype(np.float32)
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    for channel in (0, 1):
        nib.save(nib.Nifti1Image(values, affine), folder / f"a_{channel:04}.nii.gz")
    of_two_channels(folder, out).get_parsed_content("run")
    found = nib.load(out / "a_0000_seg.nii.gz")
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)
    assert found.shape == values.shape and 0 < found.get_fdata().mean() < 1


def test_metadata_has_what_the_specification_asks_for(exported, tiny_run):
    metadata = json.loads((exported / "configs" / "metadata.json").read_text())
    assert metadata.keys() >= {
        "version", "monai_version", "pytorch_version", "numpy_version",
        "optional_packages_version", "task", "description", "authors", "copyright",
    }  # fmt: skip
    data = metadata["network_data_format"]
    for tensor in (data["inputs"]["image"], data["outputs"]["pred"]):
        assert tensor.keys() == {
            "type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range",
            "is_patch_data", "channel_def",
        }  # fmt: skip
        assert len(tensor["channel_def"]) == tensor["num_channels"]
    assert data["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "atrium"}
    assert "licence" in (exported / "LICENSE").read_text()
    assert api.card(exported) == (exported / "docs" / "README.md").read_text()
    assert api.card(exported).startswith("# Model card")


def test_the_network_holds_its_configuration_too(exported):
    """MONAI Deploy reads no other file."""
    extra = dict.fromkeys(("metadata.json", "inference.json"), "")
    network = torch.jit.load(exported / "models" / "model.ts", _extra_files=extra)
    for name, content in extra.items():
        assert content == (exported / "configs" / name).read_bytes()
    with zipfile.ZipFile(exported / "models" / "model.ts") as file:
        assert {"model/extra/metadata.json", "model/extra/inference.json"} <= {*file.namelist()}
    assert network(torch.zeros(3, 1, 16, 16, 16)).shape == (3, 2, 16, 16, 16)


def test_nothing_of_the_data_or_of_this_machine_is_handed_on(exported, phantoms):
    contents = [path.read_bytes() for path in exported.rglob("*") if path.is_file()]
    with zipfile.ZipFile(exported / "models" / "model.ts") as file:
        contents += [file.read(part) for part in file.infolist()]
    content = b"".join(contents)
    assert str(phantoms).encode() not in content and not re.search(rb"phantom_\d", content)
    for folder in (Path(torch.__file__).parents[1], Path(api.__file__).parents[1]):
        assert str(folder).encode() not in content


@pytest.mark.parametrize("name", ["$print('obeyed')", "@task", "%configs/inference.json"])
def test_a_name_is_never_evaluated(name):
    plan = TWO_CHANNELS.model_copy(update={"classes": ("background", name)})
    parser = ConfigParser()
    parser.read_meta(export_bundle.metadata(plan, "vnet", "CC0"))
    outputs = parser.get_parsed_content("_meta_#network_data_format#outputs")
    assert outputs["pred"]["channel_def"]["1"] == f"'{name}"


def test_a_program_that_computes_something_else_is_refused(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"TorchScript and PyTorch differ by .*nothing was"):
        api.export(tiny_run, tmp_path / "out", format="bundle")
    assert not (tmp_path / "out").exists()


def test_what_a_killed_export_left_is_completed(exported, tiny_run, tmp_path):
    order = ["configs/metadata.json", "configs/inference.json", "docs/README.md", "LICENSE"]
    out = tmp_path / "out"
    for name in order[:3]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes((exported / name).read_bytes())
    (out / "configs" / f".tmp-{'0' * 8}-{'1' * 32}").mkdir()
    api.export(tiny_run, out, format="bundle")
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {*order, "models/model.ts"}
    assert not list(out.rglob(".tmp-*"))


@pytest.mark.parametrize("name", ["configs/mine.json", "models/model.ts", "docs"])
def test_no_part_of_anything_else_is_completed(exported, tiny_run, tmp_path, name):
    out = tmp_path / "out"
    (out / "configs").mkdir(parents=True)
    (out / "configs" / "metadata.json").write_bytes(
        (exported / "configs" / "metadata.json").read_bytes()
    )
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        api.export(tiny_run, out, format="bundle")
    assert (out / name).read_text() == "mine"
    assert not (out / "LICENSE").exists()
