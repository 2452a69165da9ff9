"""A small share of `make fuzz`, which see: every reader, damaged files and random bytes."""

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcamt.config import Config, load_config
from dcamt.errors import InputError
from fuzzing import make_files, make_input, readers, try_input

QUICK = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = [
    *(f"{kind} {ending}" for ending in (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".h5")
      for kind in ("image", "label")),
    "DICOM slice", "dataset.json", "splits.json", "YAML recipe", "checkpoint",
    "run folder, config.yaml", "run folder, split.json", "run folder, versions.json",
    "run folder, validation.json", "run folder, log.csv", "predict with config.yaml", "cache entry",
]  # fmt: skip


@pytest.fixture(scope="module")
def every(cache):
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        yield {reader.name: reader for reader in readers(Path(folder))}


def test_every_reader_is_tried(every):
    assert list(every) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_good_file_is_read(every, name):
    assert "read" in {try_input(every[name], seed) for seed in every[name].seeds}


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused(every, name, seed):
    assert try_input(every[name], make_input(every[name], seed, 0)) in ("read", "refused")


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(content=st.binary(max_size=600))
def test_random_bytes_are_read_or_refused(every, name, content):
    assert try_input(every[name], content) in ("read", "refused")


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(section=st.sampled_from(sorted(Config.model_fields)), value=TREES)
def test_any_value_of_a_recipe_is_taken_or_refused(section, value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump({section: value}), encoding="utf-8")
        try:
            load_config(path)
        except InputError as error:
            assert "\n" not in str(error)


def test_inputs_can_be_made_again(every):
    reader = every["checkpoint"]
    assert make_input(reader, 1, 2) == make_input(reader, 1, 2)
    assert len({make_input(reader, 1, n) for n in range(20)}) > 10
