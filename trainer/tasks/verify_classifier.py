"""Proof that an exported classifier says what the trained one does: loaded back by transformers, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from trainer.errors import ExportError
from trainer.models.methods.trained import ExportedFile
from trainer.tasks.task import Verified

#: How far a logit may be off: pictures go through another library's arithmetic, in fp32.
TOLERANCE = 1e-3


@torch.no_grad()
def verify_folder(
    file: ExportedFile,
    pictures: Sequence[PILImage.Image],
    trained_BK: Tensor,
    class_names: Sequence[str],
    device: torch.device,
) -> Verified:
    """Compare the logits of a loaded folder, by its own image processor, with `trained_BK` on pictures of its size.

    Raises:
        ExportError: it cannot be loaded, has other classes, or says something else.
    """
    transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForImageClassification.from_pretrained(file.path, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(file.path, backend="pil", local_files_only=True)
        pixels_BCHW = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        logits_BK = model.to(device).eval()(pixel_values=pixels_BCHW.to(device)).logits.float().cpu()
    except Exception as error:
        raise ExportError(f"{file.path.name} cannot be loaded back ({error}).", "This is a bug of ours.") from error
    if [model.config.id2label[place] for place in range(len(class_names))] != list(class_names):
        raise ExportError(f"{file.path.name}, loaded back, has other classes.", "This is a bug of ours.")
    difference = float((logits_BK - trained_BK).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(trained_BK.abs().max())):
        raise ExportError(
            f"{file.path.name}, loaded back, says something else than the classifier that was trained (logits differ "
            f"by {difference:.2g}).",
            "The checkpoint is kept. This is a bug of ours.",
        )
    return Verified(file=file, max_difference=difference)
