"""Settings of augmentation: a preset, or a list of augmenters, each with a range of values."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from trainer.protocol.frozen import Frozen
from trainer.protocol.text import _


class AugmentationPreset(StrEnum):
    """A set of augmenters that do not make captions untrue."""

    NONE = "none"
    #: Flip, small crops and zooms, very little brightness: suits everything, characters and products included.
    LIGHT = "light"
    #: `light`, with rotation of up to 5°, brightness, contrast, saturation, hue and grain as cameras vary.
    PHOTO = "photo"
    #: Flip, crop and zoom only: line art keeps its lines level and its palette.
    ART = "art"
    #: The augmenters of `Augmentation.custom`.
    CUSTOM = "custom"


class Flip(StrEnum):
    """Whether images may be mirrored."""

    #: All but those whose caption names a side or readable text.
    AUTO = "auto"
    ON = "on"
    OFF = "off"


class AugmenterName(StrEnum):
    """Augmenters by name; `low` and `high` are in the unit of `RANGES`."""

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


#: The smallest and the largest value of each augmenter, and its unit. A flip has only a probability.
RANGES: dict[AugmenterName, tuple[float, float, str]] = {
    AugmenterName.ROTATE: (-180, 180, "degrees"),
    # Below 1 the image would get a border, which the model would learn.
    AugmenterName.SCALE: (1, 2, "times its size"),
    AugmenterName.CROP: (0, 0.5, "of each side"),
    AugmenterName.TRANSLATE: (-0.25, 0.25, "of each side"),
    AugmenterName.SHEAR: (-30, 30, "degrees"),
    AugmenterName.PERSPECTIVE: (0, 0.2, "of each side"),
    AugmenterName.BRIGHTNESS: (0.5, 1.5, "times as bright"),
    AugmenterName.CONTRAST: (0.5, 1.5, "times the contrast"),
    AugmenterName.SATURATION: (0, 2, "times the saturation"),
    AugmenterName.HUE: (-180, 180, "degrees"),
    AugmenterName.GRAYSCALE: (0, 1, "of the color"),
    AugmenterName.GAUSSIAN_NOISE: (0, 50, "levels of 255"),
    AugmenterName.GAUSSIAN_BLUR: (0, 5, "px"),
    AugmenterName.JPEG: (10, 100, "JPEG quality"),
}
FLIPS = (AugmenterName.FLIP_HORIZONTAL, AugmenterName.FLIP_VERTICAL)


class Augmenter(Frozen):
    """One augmenter; its value is drawn uniformly between `low` and `high`."""

    name: AugmenterName
    low: float | None = None
    high: float | None = None
    #: Share of the variants that it is applied to.
    probability: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.name in FLIPS:
            if self.low is not None or self.high is not None:
                raise ValueError(_("{name} takes no low and high, only a probability.", name=self.name))
            return self
        lowest, highest, unit = RANGES[self.name]
        if self.low is None or self.high is None:
            raise ValueError(
                _(
                    "{name} needs low and high, within {lowest:g} – {highest:g} {unit}.",
                    name=self.name,
                    lowest=lowest,
                    highest=highest,
                    unit=unit,
                )
            )
        if not lowest <= self.low <= self.high <= highest:
            raise ValueError(
                _(
                    "{name} from {low:g} to {high:g} is not a range within {lowest:g} – {highest:g} {unit}.",
                    name=self.name,
                    low=self.low,
                    high=self.high,
                    lowest=lowest,
                    highest=highest,
                    unit=unit,
                )
            )
        return self


class Augmentation(Frozen):
    """Variants of the training images, encoded once. Validation, test and class images are not augmented."""

    preset: AugmentationPreset = AugmentationPreset.NONE
    #: Variants of each image, beside the image itself; each one is encoded and cached.
    variants: int = Field(default=4, ge=1, le=16)
    flip: Flip = Flip.AUTO
    #: Augmenters of the preset `custom`, in this order: first those that move pixels, then those that change colors.
    custom: tuple[Augmenter, ...] = Field(default=(), max_length=20)

    @property
    def is_on(self) -> bool:
        return self.preset is not AugmentationPreset.NONE

    @model_validator(mode="after")
    def _check_custom(self) -> Self:
        is_custom = self.preset is AugmentationPreset.CUSTOM
        if is_custom and not self.custom:
            raise ValueError(_("the preset custom needs a list of augmenters in custom."))
        if self.custom and not is_custom:
            raise ValueError(_("custom is only for the preset custom, and the preset is {preset}.", preset=self.preset))
        return self
