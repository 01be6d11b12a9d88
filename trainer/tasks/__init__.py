"""What is trained: a diffusion model, or an image classifier."""

from __future__ import annotations

import torch

from trainer.dataset.split.mixing import Mixture
from trainer.protocol.settings import TaskKind
from trainer.protocol.spec import Spec
from trainer.tasks.task import Task


def make_task(spec: Spec, mixture: Mixture, device: torch.device) -> Task:
    """Load what is to be trained, its method attached; only the libraries of that task are imported.

    Raises:
        MissingModelError: the pretrained model is not there, cannot be reached, or is of another kind.
        BadSpecError: the settings do not fit the model.
        DatasetError: the data do not fit the task.
    """
    if spec.task is TaskKind.CLASSIFICATION:
        from trainer.tasks.classification import ClassificationTask

        return ClassificationTask(spec, mixture, device)
    from trainer.tasks.diffusion import DiffusionTask

    return DiffusionTask(spec, mixture, device)
