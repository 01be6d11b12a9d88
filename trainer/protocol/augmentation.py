"""How training pictures are varied: a preset, or a list of augmenters, each with a range for its values."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AugmentationPreset(StrEnum):
    """What may change in a picture without making its caption untrue."""

    NONE = "none"
    #: Flip, small crops and zooms, hardly any brightness: for everything, a character or a product too.
    LIGHT = "light"
    #: As `light`, and rotation of up to 5°, brightness, contrast, saturation, hue and grain as cameras differ in them.
    PHOTO = "photo"
    #: Flip, crop and zoom only: line art keeps its lines level and its palette.
    ART = "art"
    #: The augmenters of `Augmentation.custom`.
    CUSTOM = "custom"


class Flip(StrEnum):
    """Whether pictures may be mirrored."""

    #: Not those whose caption names a side or says that something can be read.
    AUTO = "auto"
    ON = "on"
    OFF = "off"


class AugmenterName(StrEnum):
    """What an augmenter does; `low` and `high` are in the unit of `RANGES`."""

    ROTATE = "rotate"
    SCALE = "scale"
    CROP = "crop"
    TRANSLATE = "translate"
    SHEAR = "shear"
    PERSPECTIVE = "perspective"
    FLIP_HORIZONTAL = "flip_horizontal"
    FLIP_VERTICAL = "flip_vertical"
    BRIGHTNESS = "brightness"
    CONTRAST = "contrast"
    SATURATION = "saturation"
    HUE = "hue"
    GRAYSCALE = "grayscale"
    GAUSSIAN_NOISE = "gaussian_noise"
    GAUSSIAN_BLUR = "gaussian_blur"
    JPEG = "jpeg"


#: The smallest and the largest value of each augmenter, and its unit. A flip is not here: it has only a probability.
RANGES: dict[AugmenterName, tuple[float, float, str]] = {
    AugmenterName.ROTATE: (-180, 180, "degrees"),
    # Below 1 there would be a border, of which the model would learn that pictures have one.
    AugmenterName.SCALE: (1, 2, "times its size"),
    AugmenterName.CROP: (0, 0.5, "of each side"),
    AugmenterName.TRANSLATE: (-0.25, 0.25, "of each side"),
    AugmenterName.SHEAR: (-30, 30, "degrees"),
    AugmenterName.PERSPECTIVE: (0, 0.2, "of each side"),
    AugmenterName.BRIGHTNESS: (0.5, 1.5, "times as bright"),
    AugmenterName.CONTRAST: (0.5, 1.5, "times the contrast"),
    AugmenterName.SATURATION: (0, 2, "times the saturation"),
    AugmenterName.HUE: (-180, 180, "degrees"),
    AugmenterName.GRAYSCALE: (0, 1, "of the colour"),
    AugmenterName.GAUSSIAN_NOISE: (0, 50, "levels of 255"),
    AugmenterName.GAUSSIAN_BLUR: (0, 5, "px"),
    AugmenterName.JPEG: (10, 100, "JPEG quality"),
}
FLIPS = (AugmenterName.FLIP_HORIZONTAL, AugmenterName.FLIP_VERTICAL)


class Augmenter(_Frozen):
    """One change, with a value drawn evenly between `low` and `high`."""

    name: AugmenterName
    low: float | None = None
    high: float | None = None
    #: Share of the variants that it is done to.
    probability: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.name in FLIPS:
            if self.low is not None or self.high is not None:
                raise ValueError(f"{self.name} takes no low and high, only a probability.")
            return self
        lowest, highest, unit = RANGES[self.name]
        if self.low is None or self.high is None:
            raise ValueError(f"{self.name} needs low and high, within {lowest:g} – {highest:g} {unit}.")
        if not lowest <= self.low <= self.high <= highest:
            raise ValueError(
                f"{self.name} from {self.low:g} to {self.high:g} is not a range within {lowest:g} – {highest:g} {unit}."
            )
        return self


class Augmentation(_Frozen):
    """Variants of the training pictures, encoded once. Validation, test and class pictures stay as they are."""

    preset: AugmentationPreset = AugmentationPreset.NONE
    #: Variants of each picture, beside the picture itself: each is one more to encode and to keep in the cache.
    variants: int = Field(default=4, ge=1, le=16)
    flip: Flip = Flip.AUTO
    #: What is done, in this order, first what moves pixels and then what colours them; for the preset `custom`.
    custom: tuple[Augmenter, ...] = Field(default=(), max_length=20)

    @property
    def is_on(self) -> bool:
        return self.preset is not AugmentationPreset.NONE

    @model_validator(mode="after")
    def _check_custom(self) -> Self:
        is_custom = self.preset is AugmentationPreset.CUSTOM
        if is_custom and not self.custom:
            raise ValueError("the preset custom needs a list of augmenters in custom.")
        if self.custom and not is_custom:
            raise ValueError(f"custom is only for the preset custom, and the preset is {self.preset}.")
        return self
