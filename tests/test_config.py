"""Configuration: what is refused and how it is said, overrides, and files."""

from pathlib import Path

import pytest
import yaml

from dcamt.augmentation import AugmentConfig, IntensityConfig
from dcamt.config import (
    Config,
    DataConfig,
    MethodConfig,
    NetworkConfig,
    Normalization,
    Plan,
    PredictConfig,
    TrainConfig,
    load_config,
    save_config,
    validated,
    with_overrides,
)
from dcamt.errors import InputError
from dcamt.plain_yaml import load_yaml


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 7\ntrain:\n  iterations: 100\n  augment: {flip: [0], rotate: false}\n")
    return path


def refusal(*overrides: str, path: Path | None = None) -> str:
    """The message of the InputError: one line, no more."""
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


# Defaults and overrides


def test_defaults_are_the_shared_protocol() -> None:
    config = load_config(None)
    train = config.train
    assert (config.seed, config.network.name, config.network.width) == (42, "vnet", None)
    assert (train.iterations, train.labeled_batch, train.unlabeled_batch) == (6000, 2, 2)
    assert (train.learning_rate, train.momentum, train.weight_decay) == (0.01, 0.9, 1e-4)
    assert [round(at * train.iterations) for at in train.decay_at] == [2500, 5000]


def test_a_recipe_changes_what_it_names_and_nothing_else(recipe: Path) -> None:
    config = load_config(recipe)
    expected = Config(
        seed=7, train=TrainConfig(iterations=100, augment=AugmentConfig(flip=(0,), rotate=False))
    )
    assert config == expected


def test_overrides_win_over_the_recipe_and_the_last_one_wins(recipe: Path) -> None:
    config = load_config(recipe, ["seed=8", "train.iterations=200", "train.iterations=300"])
    assert (config.seed, config.train.iterations) == (8, 300)
    assert config.train.augment.flip == (0,), "a neighbour in the same section was lost"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("data.patch=[32,48,32]", lambda c: c.data.patch, (32, 48, 32)),
        ("data.window=[-120, 240]", lambda c: c.data.window, (-120.0, 240.0)),
        ("data.crop=false", lambda c: c.data.crop, False),
        ("data.patch=null", lambda c: c.data.patch, None),
        ("train.learning_rate=1e-3", lambda c: c.train.learning_rate, 0.001),
        ("train.decay_at=[]", lambda c: c.train.decay_at, ()),
        ("train.augment.flip=[2]", lambda c: c.train.augment.flip, (2,)),
        ("train.augment={rotate: false}", lambda c: c.train.augment.rotate, False),
        ("method.name=vnet", lambda c: c.method.name, "vnet"),
        ("method.temperature=2.5", lambda c: c.method.options, {"temperature": 2.5}),
        ("method.bandwidths=[1,2]", lambda c: c.method.options, {"bandwidths": [1, 2]}),
        ("dataset=/data/a=b", lambda c: c.dataset, Path("/data/a=b")),
    ],
)
def test_override_values_are_yaml(override: str, read, value: object) -> None:
    assert read(load_config(None, [override])) == value


# What is refused


@pytest.mark.parametrize(
    ("override", "key", "section"),
    [
        ("sed=1", "sed", Config),
        ("train.iteration=1", "train.iteration", TrainConfig),
        ("train.augment.flips=[0]", "train.augment.flips", AugmentConfig),
        ("data.modalitty=ct", "data.modalitty", DataConfig),
        ("network.depth=3", "network.depth", NetworkConfig),
        ("predict.step=0.5", "predict.step", PredictConfig),
    ],
)
def test_an_unknown_key_is_named_with_its_neighbours(override: str, key: str, section) -> None:
    message = refusal(override)
    assert f"unknown key '{key}'" in message
    known = message.rpartition(": ")[2].split(", ")
    assert known == sorted(section.model_fields)


def test_an_unknown_key_inside_a_list_of_sections_is_named() -> None:
    values = Config(plan=PLAN).model_dump(mode="json")
    values["plan"]["normalization"][1]["sheme"] = "zscore"
    with pytest.raises(InputError) as caught:
        validated(Config, values, "config.yaml")
    message = str(caught.value)
    assert "'plan.normalization.1.sheme'" in message
    assert message.rpartition(": ")[2].split(", ") == sorted(Normalization.model_fields)


def test_the_source_is_named(recipe: Path) -> None:
    recipe.write_text("seeds: 1\n")
    assert str(recipe) in refusal(path=recipe)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=-1", "seed"),
        ("seed=many", "seed"),
        ("train.iterations=0", "train.iterations"),
        ("train.iterations=1.5", "train.iterations"),
        ("train.learning_rate=0", "train.learning_rate"),
        ("train.learning_rate=.nan", "train.learning_rate"),
        ("train.learning_rate=.inf", "train.learning_rate"),
        ("train.weight_decay=.nan", "train.weight_decay"),
        ("train.momentum=1.1", "train.momentum"),
        ("train.precision=16", "train.precision"),
        ("train.decay_at=[0.5, 2]", "train.decay_at.1"),
        ("train.augment.flip=[3]", "train.augment.flip.0"),
        ("network.dropout=1", "network.dropout"),
        ("predict.overlap=1", "predict.overlap"),
        ("data.patch=[32,32,0]", "data.patch.2"),
        ("data.spacing=[1,1,-1]", "data.spacing.2"),
        ("data.modality=pet", "data.modality"),
        ("device=tpu", "device"),
        ("train=5", "train"),
    ],
)
def test_a_bad_value_is_named_with_its_key(override: str, key: str) -> None:
    assert f": {key} = " in refusal(override)


@pytest.mark.parametrize(
    ("override", "key"),
    [("data.patch=[32,32]", "data.patch.2"), ("plan={classes: []}", "plan.channels")],
)
def test_a_missing_value_is_named(override: str, key: str) -> None:
    assert refusal(override) == f"configuration: {key} is missing"


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAR", "PIR"])
def test_orientations(code: str) -> None:
    assert load_config(None, [f"data.orientation={code}"]).data.orientation == code


@pytest.mark.parametrize("code", ["RA", "RLS", "RRS", "XYZ", "ras", "RASA", "''"])
def test_an_orientation_must_name_each_axis_once(code: str) -> None:
    message = refusal(f"data.orientation={code}")
    assert "data.orientation" in message
    assert message.endswith(": name each axis once, e.g. RAS or LPS")


@pytest.mark.parametrize("override", ["seed", "=1", ""])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    assert "key=value" in refusal(override)


def test_an_override_below_a_plain_value_is_refused(recipe: Path) -> None:
    assert "'seed' is a value, not a section" in refusal("seed.x=1", path=recipe)
    assert "seed" in refusal("seed.x=1")


def test_an_override_that_is_no_yaml_is_refused() -> None:
    assert "not plain YAML" in refusal("data.patch=[32,")


# Files


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words\n", "5\n"])
def test_a_file_that_is_no_mapping_is_refused(recipe: Path, text: str) -> None:
    recipe.write_text(text)
    message = refusal(path=recipe)
    assert str(recipe) in message
    assert "key: value" in message


@pytest.mark.parametrize("content", [b"a: [1,\n", b"\xff\xfe\x00bad", b"a: b: c\n"])
def test_a_broken_file_is_refused(recipe: Path, content: bytes) -> None:
    recipe.write_bytes(content)
    message = refusal(path=recipe)
    assert str(recipe) in message
    assert "plain" in message


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    assert str(tmp_path / name) in refusal(path=tmp_path / name)


@pytest.mark.parametrize("text", ["1: 2\n", "{true: x}\n", "? [a, b]\n: 1\n"])
def test_a_key_that_is_no_word_is_refused(recipe: Path, text: str) -> None:
    recipe.write_text(text)
    assert str(recipe) in refusal(path=recipe)


def test_an_empty_file_is_the_defaults(recipe: Path) -> None:
    recipe.write_text("# nothing yet\n")
    assert load_config(recipe) == Config()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: [*a, *a]\n",
        "\n".join(
            f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9) if i else 'x'}]" for i in range(12)
        ),
        "&a [*a]\n",
        "train: {<<: &a {iterations: 3}, <<: *a}\n",
    ],
)
def test_yaml_cannot_expand(recipe: Path, text: str) -> None:
    recipe.write_text(text)
    assert "plain YAML" in refusal(path=recipe)


def test_what_this_program_saves_has_no_references(recipe: Path) -> None:
    size = [16, 16, 16]
    config = load_config(None, [f"data.patch={size}", f"predict.stride={size}"])
    save_config(config, recipe)
    assert load_config(recipe) == config


@pytest.mark.parametrize(
    "text", ["seed: " + "9" * 5000, "[" * 5000, "seed: 2001-99-99", "a: !!int x"]
)
def test_values_that_a_parser_trips_over(recipe: Path, text: str) -> None:
    recipe.write_text(text)
    assert "plain YAML" in refusal(path=recipe)


def test_yaml_cannot_run_anything(recipe: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    attack = f"!!python/object/apply:os.mkdir ['{victim}']"
    recipe.write_text(f"seed: {attack}\n")
    for call in (lambda: load_yaml(recipe), lambda: load_config(None, [f"seed={attack}"])):
        with pytest.raises(InputError):
            call()
    assert not victim.exists()


PLAN = Plan(
    channels=("T1", "no", "CT (HU)"),
    classes=("background", "Läsion", "null", "1e3", "a: b"),
    ignore=255,
    orientation="LPS",
    spacing=(0.1 + 0.2, 1 / 3, 1e-7),
    crop=False,
    normalization=(
        Normalization(),
        Normalization(scheme="zscore"),
        Normalization(scheme="window", low=-120, high=240, mean=1 / 7, std=1e-5),
    ),
    patch=(112, 112, 80),
)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(
            dataset=Path("/data/with space/Ü: #1"),
            seed=0,
            device="cpu",
            data=DataConfig(spacing=(1, 1, 2.5), modality="ct", window=(-120, 240), crop=False),
            plan=PLAN,
            network=NetworkConfig(width=2, dropout=0.5),
            train=TrainConfig(
                decay_at=(1 / 3, 2 / 3), weight_decay=1e-12, augment=AugmentConfig(flip=())
            ),
            method=MethodConfig.model_validate(
                {"name": "dca-mt", "bandwidths": [0.5, 1e-6], "teacher": "both"}
            ),
            predict=PredictConfig(overlap=0.0, batch=1),
        ),
    ],
    ids=["defaults", "everything"],
)
def test_what_is_saved_is_what_is_loaded(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config
    assert list(path.parent.iterdir()) == [path], "a temporary file was left behind"
    saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(saved) == list(Config.model_fields), "every key, in the documented order"


def test_saving_where_nothing_can_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_config(Config(), tmp_path / "file" / "config.yaml")


def test_a_configuration_cannot_be_changed_by_accident() -> None:
    config = Config()
    for section in (config, config.train, config.method):
        with pytest.raises(ValueError, match="frozen"):
            section.seed = 1


def test_a_kind_of_augmentation_sets_what_is_not_asked_for() -> None:
    config = load_config(None, ["train.augment.kind=nnunet", "train.augment.blur=[0,1,1]"])
    augment = config.train.augment
    assert augment.angle == 30 and augment.noise[0] == 0.1 and augment.intensity == 0
    assert augment.blur == (0, 1, 1)
    plain = load_config(None).train.augment
    assert all(getattr(plain, name)[0] == 0 for name in IntensityConfig.model_fields)
    # A run's configuration holds what its kind had set: another kind sets it anew.
    run = {"train": {"augment": plain.model_dump(mode="json") | {"flip": [], "zoom": 0.3}}}
    changed = with_overrides(run, ["train.augment.kind=nnunet"], "run").train.augment
    assert (changed.angle, changed.zoom, changed.flip) == (30, 0.3, ())
    # What was resolved is read back as it was written.
    again = AugmentConfig.model_validate(augment.model_dump(mode="json"))
    assert again == augment


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("train.augment.blur=[0.5, 2, 1]", "0.01 <= least <= most"),
        ("train.augment.gamma=[0.5, 0, 1]", "0.01 <= least <= most"),
        ("train.augment.low_resolution=[0.5, 0.5, 2]", "most <= 1"),
        ("train.strong.noise=[0.5, -1, 1]", "0 <= least"),
        ("train.strong.noise=[2, 0, 1]", "less than or equal to 1"),
        ("train.augment.kind=mine", "'literature' or 'nnunet'"),
    ],
)
def test_an_impossible_change_of_intensity_is_refused(override: str, why: str) -> None:
    assert why in refusal(override)
