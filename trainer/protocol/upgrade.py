"""Specs of earlier versions, as what they mean today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a spec in the newest version; what the old one did not know stays off."""
    settings = _from_1(content) if content.get("version") == 1 else dict(content)
    return _with_epochs_of_stages(settings)


def _from_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Version 2 calls the adapter `method`, and has a group for the objective."""
    settings = {name: dict(value) if isinstance(value, Mapping) else value for name, value in content.items()}
    settings["version"] = 2
    if "adapter" in settings:
        method = settings.pop("adapter")
        settings["method"] = {"kind" if name == "method" else name: value for name, value in method.items()}
    training = settings.get("training", {})
    if "snr_gamma" in training:
        settings["objective"] = {"snr_gamma": training.pop("snr_gamma")}
    settings["early_stopping"] = {"smoothing": 0, **settings.get("early_stopping", {})}
    settings["validation"] = {"train_images": 0, **settings.get("validation", {})}
    settings["samples"] = {"unrelated_prompts": [], **settings.get("samples", {})}
    # Version 1 had four pictures in memory at most, and fp32 on a CPU.
    training.setdefault("micro_batch_size", None)
    if training["micro_batch_size"] is None:
        training["micro_batch_size"] = min(4, training.get("batch_size", 4))
    settings["training"] = training
    return settings


def _with_epochs_of_stages(settings: dict[str, Any]) -> dict[str, Any]:
    """`training.epochs` of a spec with stages is their sum, unless it was said otherwise (and is then refused)."""
    stages, training = settings.get("stages"), settings.get("training", {})
    if not stages or not isinstance(training, Mapping) or "epochs" in training:
        return settings
    counts = [stage.get("epochs") if isinstance(stage, Mapping) else stage.epochs for stage in stages]
    if not all(isinstance(count, int) for count in counts):
        return settings
    return {**settings, "training": {**training, "epochs": sum(counts)}}
