"""The configuration of a run: typed sections, YAML files and ``key=value`` overrides.

A recipe, the command line and a finished run's ``config.yaml`` all speak the same keys. Unknown
keys and bad values are refused with the key and what would have been accepted.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from dcamt.augmentation import AugmentConfig, StrongConfig
from dcamt.errors import InputError
from dcamt.files import write_text
from dcamt.plain_yaml import load_yaml, parse_yaml
from dcamt.section import Fraction, Section


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


_LONGEST_SHOWN = 100


class Normalization(Section):
    """How intensities of one channel become network input.

    ``zscore``: zero mean and unit variance over the volume; with ``masked`` over what is not zero
    in any channel, holes included, and the rest stays zero. ``window``: clip to [low, high], then
    subtract ``mean`` and divide by ``std``, all in the units of the image (HU for CT). ``minmax``:
    from 0 to 1 over the volume. ``none``: the file holds network input already.
    """

    scheme: Literal["zscore", "window", "minmax", "none"] = "zscore"
    masked: bool = False
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: PositiveFloat | None = None

    @model_validator(mode="after")
    def _whole_window(self) -> "Normalization":
        if self.scheme == "window" and None in (self.low, self.high, self.mean, self.std):
            raise ValueError("a window needs low, high, mean and std")
        return self


class DataConfig(Section):
    """What preparation may be told; everything left at null is planned from the data."""

    val_fraction: Fraction = 0.2
    orientation: Orientation = "RAS"
    spacing: Triple | None = None
    modality: Literal["mr", "ct", "normalized"] | None = None
    window: Window | None = None
    crop: bool | None = None
    patch: Patch | None = None


MOST_CLASSES = 128
"""With the background: prepared labels are int8."""


CodeWord = Annotated[str, Field(pattern=r"^[\x20-\x5b\x5d-\x7e]{1,16}$")]
CodeMeaning = Annotated[str, Field(pattern=r"^[^\\\p{C}]{1,64}$")]
Code = tuple[CodeWord, CodeWord, CodeMeaning]
"""Value, scheme and meaning, such as ("10200004", "SCT", "Liver"): DICOM sets the lengths."""


class ClassCodes(Section):
    """What a class is in a DICOM Segmentation: Segmented Property Category and Type."""

    category: Code
    type: Code


class Plan(Section):
    """What preparation does, resolved: written to the run and reused by ``predict``."""

    channels: tuple[str, ...]
    classes: tuple[str, ...]
    ignore: int | None
    orientation: Orientation
    spacing: Triple
    crop: bool
    normalization: tuple[Normalization, ...]
    patch: Patch
    codes: dict[str, ClassCodes] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> "Plan":
        if not self.channels or len(self.normalization) != len(self.channels):
            raise ValueError("each channel needs one normalization")
        if not 2 <= len(self.classes) <= MOST_CLASSES:
            raise ValueError(f"name the background and 1 to {MOST_CLASSES - 1} classes")
        return self


class BackboneConfig(Section):
    """A backbone by its name; a name alone stands for one in its own sizes.

    ``width``: channels at full resolution. ``size``: S, B, ... of those that come in named sizes.
    Either may be left at null, which is what the backbone itself takes.
    """

    name: str
    width: PositiveInt | None = None
    size: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values


class NetworkConfig(BackboneConfig):
    """The backbone every method builds its branches from."""

    name: str = "vnet"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainConfig(Section):
    """The protocol.

    ``decay``: the rate is divided by 10 at each fraction of the run in ``decay_at`` (``step``), or
    falls as (1 - done)^``power`` (``polynomial``). ``devices``: processes that compute each batch
    in shares, a GPU for each where there are GPUs; the batch and the weights stay the same.
    """

    iterations: PositiveInt = 6000
    labeled_batch: PositiveInt = 2
    unlabeled_batch: PositiveInt = 2
    learning_rate: PositiveFloat = 0.01
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay: Literal["step", "polynomial"] = "step"
    decay_at: tuple[Fraction, ...] = (2500 / 6000, 5000 / 6000)
    power: PositiveFloat = 0.9
    foreground: Fraction = 1 / 3
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    devices: PositiveInt = 1
    workers: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: PositiveInt = 250
    validate_every: Annotated[int, Field(ge=0)] = 500
    augment: AugmentConfig = AugmentConfig()
    strong: StrongConfig = StrongConfig()


class PredictConfig(Section):
    """Sliding-window inference.

    ``overlap`` is the shared fraction of neighbouring windows; ``stride``, where set, is their
    distance along each axis in voxels instead. Windows are averaged with ``weighting``: the middle
    counts more (gaussian) or every voxel alike. ``batch`` windows are computed at once.
    """

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    stride: Patch | None = None
    weighting: Literal["gaussian", "constant"] = "gaussian"
    batch: PositiveInt = 4


class MethodConfig(BaseModel):
    """A method's name, and the options that its own ``Config`` checks."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "dca-mt"

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Config(Section):
    """Everything that decides a run. ``plan`` is filled in once the data have been seen."""

    dataset: Path | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = DataConfig()
    plan: Plan | None = None
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    method: MethodConfig = MethodConfig()
    predict: PredictConfig = PredictConfig()


AnySection = TypeVar("AnySection", bound=BaseModel)


def validated(section: type[AnySection], values: Any, source: str) -> AnySection:
    """``values`` as a ``section``; InputError names the key, its fault and the known keys."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = _shown(".".join(map(str, first["loc"])) or "the configuration").strip("'\"")
        if first["type"] == "extra_forbidden":
            known = ", ".join(_fields_beside(section, first["loc"]))
            raise InputError(f"{source}: unknown key '{key}'; known keys there: {known}") from None
        if first["type"] == "missing":
            raise InputError(f"{source}: {key} is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        raise InputError(f"{source}: {key} = {_shown(first['input'])}: {message}") from None


def _shown(value: Any) -> str:
    """A value of the user's as one short line."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _fields_beside(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location[:-1]:
        field = section.model_fields.get(str(part))
        kinds = (
            [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        )
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if inner:
            section = inner[0]
    return sorted(section.model_fields)


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a recipe (or the defaults) with ``key=value`` overrides applied.

    Values are YAML: ``train.iterations=2000``, ``data.patch=[32,48,32]``.
    """
    values = load_yaml(path) if path else {}
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key:
            raise InputError(f"--set {override}: write it as key=value, e.g. train.iterations=2000")
        value = parse_yaml(text, f"--set {override}")
        _set(values, key.split("."), value, override)
    return validated(Config, values, str(path) if path else "configuration")


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
