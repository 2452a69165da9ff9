"""Runs made small: what is left out, and that they still predict."""

import json
import math
import shutil

import nibabel as nib
import numpy as np
import pytest

from dcamt import api
from dcamt.data.dataset import read_dataset
from dcamt.errors import InputError


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "out"
    # The tiny run's weights take some 0.6 MB in half precision.
    return out, api.export(tiny_run, out, megabytes=0.25)


def test_weights_come_in_small_files(exported, tiny_run):
    out, paths = exported
    assert len(paths) > 1 and paths == sorted(out.glob("last-*-of-*.safetensors"))
    assert all(path.stat().st_size <= 250_000 for path in paths)
    whole = (tiny_run / "last.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in paths) < whole / 3  # half of it, no momentum


def test_they_segment_as_the_run_does(exported, tiny_run, phantoms, tmp_path):
    out, _ = exported
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    found = []
    for name, run in (("run", tiny_run), ("export", out)):
        folder = tmp_path / name
        api.predict(run, scan, folder, probabilities=True, quiet=True)
        maps = sorted((folder / "probabilities").iterdir())
        found.append(np.stack([np.asarray(nib.load(path).dataobj) for path in maps]))
    np.testing.assert_allclose(found[1], found[0], atol=5e-3)


def test_what_was_handed_on_is_handed_on_again(exported, tmp_path):
    out, _ = exported
    api.export(out, tmp_path / "again", megabytes=0.25)
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert again == {path.name: path.read_bytes() for path in out.iterdir()}
    assert api.card(out) == (out / "card.md").read_text()
    about = api.export(out, tmp_path / "bundle", format="bundle")[0].parents[1]
    metadata = json.loads((about / "configs" / "metadata.json").read_text())
    assert "The weights were made from the data that the model card names" in json.dumps(metadata)


def test_nothing_of_the_data_is_handed_on(exported, tiny_run, phantoms):
    out, _ = exported
    content = b"".join(path.read_bytes() for path in out.iterdir())
    assert str(phantoms).encode() not in content
    split = json.loads((tiny_run / "split.json").read_text())
    assert split["labeled"] and not any(
        case.name.encode() in content for case in read_dataset(phantoms).cases
    )


def test_a_missing_part_is_named(exported, tmp_path, phantoms):
    out, paths = exported
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in out.iterdir():
        if path != paths[1]:
            (broken / path.name).write_bytes(path.read_bytes())
    scan = phantoms / "imagesTr" / "phantom_000.nii.gz"
    with pytest.raises(InputError, match=paths[1].name):
        api.predict(broken, scan, tmp_path / "out", quiet=True)


def test_what_exists_is_not_overwritten(exported, tiny_run):
    out, _ = exported
    with pytest.raises(InputError, match="exists already"):
        api.export(tiny_run, out)
    for megabytes in (0, math.nan, math.inf, 0.001):
        with pytest.raises(InputError, match=r"megabytes|larger files"):
            api.export(tiny_run, out / "new", megabytes=megabytes)
        assert not (out / "new").exists()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_disk_at_the_second_part(exported, tiny_run, small_disk, fill):
    out = small_disk / "out"
    filler = fill(small_disk, 350_000)
    with pytest.raises(InputError, match="No space left"):
        api.export(tiny_run, out, megabytes=0.25)
    assert 0 < len(contents(out)) < len(contents(exported[0]))
    filler.unlink()
    api.export(tiny_run, out, megabytes=0.25)
    assert contents(out) == contents(exported[0])


def test_what_a_killed_export_left_is_completed(exported, tiny_run, tmp_path):
    whole = contents(exported[0])
    order = [*sorted(name for name in whole if name.endswith(".safetensors")),
             "card.md", "versions.json", "config.yaml"]  # fmt: skip
    for done in range(len(order)):
        out = tmp_path / str(done)
        half = out / f".tmp-{'0' * 8}-{'1' * 32}"
        half.mkdir(parents=True)
        (half / order[done]).write_bytes(b"half")
        for name in order[:done]:
            (out / name).write_bytes(whole[name])
        assert api.export(tiny_run, out, megabytes=0.25) == [out / p.name for p in exported[1]]
        assert contents(out) == whole


def test_no_part_of_anything_else_is_completed(exported, tiny_run, tmp_path):
    out, first = tmp_path / "out", exported[1][0]
    out.mkdir()
    for name, content in (("thesis.txt", b"mine"), (first.name, b"mine"), ("card.md", b"mine")):
        (out / first.name).write_bytes(first.read_bytes())
        (out / name).write_bytes(content)
        before = contents(out)
        with pytest.raises(InputError, match="exists already"):
            api.export(tiny_run, out, megabytes=0.25)
        assert contents(out) == before
        (out / name).unlink()


def test_the_card_says_which_weights_they_are(exported, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.copy(run / "last.safetensors", run / "best.safetensors")
    api.export(run, tmp_path / "best", weights="best")
    assert "highest Dice on the validation cases" in (tmp_path / "best" / "card.md").read_text()
    assert "of the last iteration; no case" in (exported[0] / "card.md").read_text()
