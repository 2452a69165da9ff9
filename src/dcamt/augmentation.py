"""How training patches are changed at random: what a recipe says of it.

``data/patches.py`` turns, mirrors and cuts by these settings, ``data/intensity.py`` does the rest.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dcamt.section import Fraction, Section

Chance = tuple[Fraction, float, float]
"""How probable a change is, and the least and the most of it."""


class IntensityConfig(Section):
    """Random changes of intensity, each as [probability, least, most]; probability 0 is never."""

    noise: Chance = (0, 0, 0.1)
    """Noise: its standard deviation, where a scan's own is 1."""
    blur: Chance = (0, 0.5, 1)
    """Blur: sigma in voxels."""
    brightness: Chance = (0, 0.75, 1.25)
    """Brightness: factor of the intensities."""
    contrast: Chance = (0, 0.75, 1.25)
    """Contrast: factor about the mean, within the range of the patch."""
    low_resolution: Chance = (0, 0.5, 1)
    """Low resolution: share of the resolution that is kept."""
    inverted_gamma: Chance = (0, 0.7, 1.5)
    """Gamma of 1 minus the values scaled to 0 to 1; mean and deviation are kept."""
    gamma: Chance = (0, 0.7, 1.5)
    """Gamma: exponent of the values scaled to 0 to 1; mean and deviation are kept."""

    @field_validator("*", mode="after")
    @classmethod
    def _is_possible(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name not in IntensityConfig.model_fields:
            return value
        _, least, most = value
        lowest = 0 if info.field_name in ("noise", "brightness", "contrast") else 0.01
        highest = 1 if info.field_name == "low_resolution" else 100
        if not lowest <= least <= most <= highest:
            raise ValueError(
                "write it as [probability, least, most], "
                f"with {lowest} <= least <= most <= {highest}"
            )
        return value


AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "literature": {},
    "nnunet": {
        "angle": 30,
        "zoom": 0.4,
        "spatial": 0.2,
        "intensity": 0,
        "noise": (0.1, 0, 0.1),
        "blur": (0.2, 0.5, 1),
        "brightness": (0.15, 0.75, 1.25),
        "contrast": (0.15, 0.75, 1.25),
        "low_resolution": (0.25, 0.5, 1),
        "inverted_gamma": (0.1, 0.7, 1.5),
        "gamma": (0.3, 0.7, 1.5),
    },
}
"""What each kind of augmentation sets where nothing else is asked for."""


class AugmentConfig(IntensityConfig):
    """Random changes of a training patch; the same for every method."""

    kind: Literal["literature", "nnunet"] = "literature"
    """Sets the others: `literature` as semi-supervised papers do, `nnunet` as nnU-Net does."""
    flip: tuple[Literal[0, 1, 2], ...] | None = None
    """Axes that may be mirrored (0, 1, 2); null: those along which the scans lie both ways."""
    rotate: bool | None = None
    """Whether quarter turns in the plane of axes 0 and 1 are made; null: the scans decide."""
    angle: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation about each axis in degrees."""
    zoom: Annotated[float, Field(ge=0)] = 0.0
    """Largest relative change of size."""
    spatial: Fraction = 1.0
    """Probability of the rotation, and of the change of size."""
    intensity: Fraction = 0.1
    """Largest relative change of contrast; largest shift and noise in standard deviations."""

    @property
    def flips(self) -> tuple[int, ...]:
        """Axes that may be mirrored; where nothing was chosen, the literature's."""
        return (0, 1) if self.flip is None else self.flip

    @property
    def turns(self) -> bool:
        """Whether patches are turned; where nothing was chosen, they are."""
        return self.rotate is None or self.rotate

    @model_validator(mode="before")
    @classmethod
    def _of_its_kind(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
            return values
        return {**AUGMENTATIONS.get(values["kind"], {}), **values}


def beyond_its_kind(values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``values`` of AugmentConfig say beyond what their kind sets anyway."""
    kind = values.get("kind", "literature")
    if kind not in AUGMENTATIONS:
        return {**values}
    usual = AugmentConfig.model_validate({"kind": kind}).model_dump(mode="json")
    return {key: value for key, value in values.items() if value != usual.get(key)}


class StrongConfig(IntensityConfig):
    """How a strong view of an unlabelled patch differs from the patch that it is a view of."""

    noise: Chance = (0.2, 0, 0.1)
    blur: Chance = (0.5, 0.1, 2)
    brightness: Chance = (0.8, 0.5, 1.5)
    contrast: Chance = (0.8, 0.5, 1.5)
    gamma: Chance = (0.5, 0.5, 1.5)
