"""The configuration of a run: typed sections, YAML files and ``key=value`` overrides.

A recipe, the command line and a finished run's ``config.yaml`` all speak the same keys. Unknown
keys and bad values are refused with the key and what would have been accepted.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from dcamt.augmentation import AugmentConfig, StrongConfig, beyond_its_kind
from dcamt.errors import InputError
from dcamt.files import write_text
from dcamt.plain_yaml import load_yaml, parse_yaml
from dcamt.section import Fraction, Section, validated


def _orientation(code: str) -> str:
    axes = ({"R", "L"}, {"A", "P"}, {"S", "I"})
    if len(code) != 3 or any(len(pair & set(code)) != 1 for pair in axes):
        raise ValueError("name each axis once, e.g. RAS or LPS")
    return code


def _window(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] < limits[1]:
        raise ValueError("the lower limit comes first, e.g. [-160, 240]")
    return limits


Triple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Orientation = Annotated[str, AfterValidator(_orientation)]
Window = Annotated[tuple[float, float], AfterValidator(_window)]
Patch = tuple[PositiveInt, PositiveInt, PositiveInt]


class Normalization(Section):
    """How intensities of one channel become network input.

    ``window`` clips to [low, high], subtracts ``mean`` and divides by ``std``.
    """

    scheme: Literal["zscore", "window", "minmax", "none"] = "zscore"
    """`zscore`: mean 0, variance 1 in each scan; `minmax`: 0 to 1; `none`: as it is in the file."""
    masked: bool = False
    """Whether a z-score is that of voxels that are not zero, holes included; zero stays zero."""
    low: float | None = None
    """Lower limit of a window, in units of the image (HU for CT)."""
    high: float | None = None
    """Upper limit of a window."""
    mean: float | None = None
    """What a window subtracts after clipping."""
    std: PositiveFloat | None = None
    """What a window then divides by."""

    @model_validator(mode="after")
    def _whole_window(self) -> "Normalization":
        if self.scheme == "window" and None in (self.low, self.high, self.mean, self.std):
            raise ValueError("a window needs low, high, mean and std")
        return self


class DataConfig(Section):
    """Settings of preparation; keys left at null are planned from the data."""

    val_fraction: Fraction = 0.2
    """Share of the labelled cases that validates, if no splits file is given."""
    orientation: Orientation = "RAS"
    """Axes of prepared scans, e.g. RAS or LPS."""
    spacing: Triple | None = None
    """Voxel size in mm."""
    modality: Literal["mr", "ct", "normalized"] | None = None
    """`ct`, `mr`, or `normalized`: intensities are used as they are."""
    window: Window | None = None
    """Intensities to clip to, e.g. [-120, 240] HU; of channels named CT, if there are any."""
    crop: bool | None = None
    """Whether to crop to the box of voxels that are not zero."""
    patch: Patch | None = None
    """Size of a training patch in voxels."""


MOST_CLASSES = 128
"""With the background: prepared labels are int8."""


CodeWord = Annotated[str, Field(pattern=r"^[\x20-\x5b\x5d-\x7e]{1,16}$")]
CodeMeaning = Annotated[str, Field(pattern=r"^[^\\\p{C}]{1,64}$")]
Code = tuple[CodeWord, CodeWord, CodeMeaning]
"""Value, scheme and meaning, such as ("10200004", "SCT", "Liver"): DICOM sets the lengths."""


class ClassCodes(Section):
    """What a class is in a DICOM Segmentation: Segmented Property Category and Type."""

    category: Code
    """Segmented Property Category: value, scheme, meaning."""
    type: Code
    """Segmented Property Type: value, scheme, meaning."""


class Plan(Section):
    """What preparation does: written to the run, and used again by ``predict``."""

    channels: tuple[str, ...]
    """Names of the image channels."""
    classes: tuple[str, ...]
    """Names of the classes, the background first."""
    ignore: int | None
    """Label value of voxels that nobody annotated."""
    orientation: Orientation
    """Axes of prepared scans."""
    spacing: Triple
    """Voxel size in mm."""
    crop: bool
    """Whether scans are cropped to the box of voxels that are not zero."""
    normalization: tuple[Normalization, ...]
    """How intensities are normalised, channel by channel."""
    patch: Patch
    """Size of a training patch in voxels."""
    codes: dict[str, ClassCodes] = Field(default_factory=dict)
    """DICOM codes of classes, by their names."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Plan":
        if not self.channels or len(self.normalization) != len(self.channels):
            raise ValueError("each channel needs one normalization")
        if not 2 <= len(self.classes) <= MOST_CLASSES:
            raise ValueError(f"name the background and 1 to {MOST_CLASSES - 1} classes")
        return self


class BackboneConfig(Section):
    """A backbone by its name; a name alone stands for one in its own sizes."""

    name: str
    """Name of the backbone."""
    width: PositiveInt | None = None
    """Channels at full resolution; null: the backbone's usual number."""
    size: str | None = None
    """S, B, M, ... of a backbone that has named sizes; null: its usual one."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values


class NetworkConfig(BackboneConfig):
    """The backbone of which every method builds its networks."""

    name: str = "vnet"
    """Backbone: vnet, light-vnet, unet, resenc, segresnet, mednext or swin-unetr."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate."""


class TrainConfig(Section):
    """The protocol of training."""

    iterations: PositiveInt = 6000
    """Training iterations."""
    labeled_batch: PositiveInt = 2
    """Labelled patches in an iteration."""
    unlabeled_batch: PositiveInt = 2
    """Unlabelled patches in an iteration."""
    learning_rate: PositiveFloat = 0.01
    """Learning rate of SGD at the start."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay."""
    decay: Literal["step", "polynomial"] = "step"
    """`step`: the rate is divided by 10 at each of `decay_at`; `polynomial`: (1 - done)^`power`."""
    decay_at: tuple[Fraction, ...] = (2500 / 6000, 5000 / 6000)
    """Shares of the run after which the rate falls (`step`)."""
    power: PositiveFloat = 0.9
    """Exponent of the polynomial decay."""
    foreground: Fraction = 1 / 3
    """Share of the labelled patches that are placed on foreground."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """`auto`: bfloat16 on a GPU that has its units, float32 elsewhere."""
    devices: PositiveInt = 1
    """Processes that compute each batch in shares, one for each GPU. The weights stay the same."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare patches; 0: the training does it itself."""
    checkpoint_every: PositiveInt = 250
    """Iterations between two checkpoints."""
    validate_every: Annotated[int, Field(ge=0)] = 500
    """Iterations between two validations. 0: none on the way, so there are no best weights."""
    tracker: Literal["tensorboard", "mlflow"] = "tensorboard"
    """`mlflow`: MLflow gets the numbers, too; TensorBoard always does."""
    augment: AugmentConfig = AugmentConfig()
    strong: StrongConfig = StrongConfig()


class PredictConfig(Section):
    """Sliding-window inference."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share that neighbouring windows have in common."""
    stride: Patch | None = None
    """Distance of windows in voxels along each axis, in place of the overlap."""
    weighting: Literal["gaussian", "constant"] = "gaussian"
    """`gaussian`: the middle of a window counts more; `constant`: all of it alike."""
    batch: PositiveInt = 4
    """Windows computed at once."""


class MethodConfig(BaseModel):
    """The training method, and its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "dca-mt"
    """Training method; its options are the other keys of this section."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Config(Section):
    """Everything that decides a run. ``plan`` is filled in once the data have been seen."""

    dataset: Path | None = None
    """Folder of the data set; filled in by the command."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of everything random: split, weights, patches."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU if there is one."""
    data: DataConfig = DataConfig()
    plan: Plan | None = None
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    method: MethodConfig = MethodConfig()
    predict: PredictConfig = PredictConfig()


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a recipe (or the defaults) with ``key=value`` overrides applied.

    Values are YAML: ``train.iterations=2000``, ``data.patch=[32,48,32]``.
    """
    values = load_yaml(path) if path else {}
    return with_overrides(values, overrides, str(path) if path else "configuration")


def with_overrides(values: dict[str, Any], overrides: Iterable[str], source: str) -> Config:
    """The configuration of ``values``, which it takes for its own, with overrides applied."""
    overrides = list(overrides)
    train = values.get("train")
    if any(override.startswith("train.augment.kind=") for override in overrides) and (
        isinstance(train, dict) and isinstance(train.get("augment"), dict)
    ):  # a run's configuration also holds all that its old kind had set
        train["augment"] = beyond_its_kind(train["augment"])
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key:
            raise InputError(f"--set {override}: write it as key=value, e.g. train.iterations=2000")
        value = parse_yaml(text, f"--set {override}")
        _set(values, key.split("."), value, override)
    return validated(Config, values, source)


def load_recipe(
    path: Path | None, overrides: Iterable[str] = (), plan: Path | None = None
) -> Config:
    """Like load_config, for what a user writes, with the plan in the file ``plan`` if one is given.

    Raises InputError for a recipe that holds another plan, and for settings that the plan decides.
    """
    config = load_config(path, overrides)
    source = str(path) if path else "configuration"
    given = None if plan is None else load_plan(plan)
    if config.plan is not None and config.plan == given:
        return config  # a run's own configuration, to repeat it
    if config.plan is not None:
        raise InputError(
            f"{source}: holds a plan, which a recipe cannot; give it as --plan {source} too, to "
            "repeat a run, or leave the section 'plan' out"
        )
    if given is None:
        return config
    data = config.data.model_dump()
    planned = [key for key, value in DataConfig().model_dump().items() if data[key] != value]
    decided = [key for key in planned if key != "val_fraction"]
    if decided:
        raise InputError(
            f"{plan}: the plan decides data.{decided[0]}, which is set as well; leave one of them "
            "out"
        )
    return config.model_copy(update={"plan": given})


def load_plan(path: Path) -> Plan:
    """The plan in a run's config.yaml, or in a YAML file of its own."""
    values = load_yaml(path)
    return validated(Plan, values.get("plan", values), str(path))


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override}: '{key}' is a value, not a section")
    values[keys[-1]] = value


def config_text(config: Config) -> str:
    """Every key, resolved, as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def save_config(config: Config, path: Path) -> None:
    """Write every key, resolved, as YAML."""
    write_text(path, config_text(config))
