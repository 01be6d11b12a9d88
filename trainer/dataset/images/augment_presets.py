"""The augmenters of each preset."""

from __future__ import annotations

from trainer.protocol.augmentation import Augmentation, AugmentationPreset, Augmenter, AugmenterName

_FLIP = Augmenter(name=AugmenterName.FLIP_HORIZONTAL, probability=0.5)


def _between(name: AugmenterName, low: float, high: float, probability: float = 1.0) -> Augmenter:
    return Augmenter(name=name, low=low, high=high, probability=probability)


#: Values that are customary for LoRA training; none of them is tuned.
_PRESETS: dict[AugmentationPreset, tuple[Augmenter, ...]] = {
    AugmentationPreset.NONE: (),
    AugmentationPreset.LIGHT: (
        _FLIP,
        _between(AugmenterName.CROP, 0, 0.08),
        _between(AugmenterName.SCALE, 1, 1.06),
        _between(AugmenterName.BRIGHTNESS, 0.95, 1.05),
    ),
    AugmentationPreset.PHOTO: (
        _FLIP,
        _between(AugmenterName.ROTATE, -5, 5, 0.7),
        _between(AugmenterName.CROP, 0, 0.1),
        _between(AugmenterName.BRIGHTNESS, 0.9, 1.1),
        _between(AugmenterName.CONTRAST, 0.9, 1.1),
        _between(AugmenterName.SATURATION, 0.85, 1.15),
        _between(AugmenterName.HUE, -5, 5, 0.5),
        _between(AugmenterName.GAUSSIAN_NOISE, 0, 4, 0.3),
    ),
    AugmentationPreset.ART: (
        _FLIP,
        _between(AugmenterName.CROP, 0, 0.08),
        _between(AugmenterName.SCALE, 1, 1.1),
    ),
}


def augmenters_of(augmentation: Augmentation) -> tuple[Augmenter, ...]:
    """What is done to a picture that may be mirrored, in order."""
    if augmentation.preset is AugmentationPreset.CUSTOM:
        return augmentation.custom
    return _PRESETS[augmentation.preset]
