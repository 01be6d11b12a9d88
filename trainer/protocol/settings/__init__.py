"""The groups of settings that make up a spec."""

from __future__ import annotations

from trainer.protocol.settings.classifier import Classifier, ClassWeights, TaskKind
from trainer.protocol.settings.measuring import EarlyStopping, Samples, Validation
from trainer.protocol.settings.method import Base, Method, MethodKind, Prior, Targets
from trainer.protocol.settings.objective import LossKind, Objective, Prediction
from trainer.protocol.settings.split import SplitChoice, SplitKind
from trainer.protocol.settings.stages import Stage, Unfreeze, resolved
from trainer.protocol.settings.training import Arguments, OptimizerKind, Precision, ScheduleKind, Training

__all__ = [
    "Arguments",
    "Base",
    "ClassWeights",
    "Classifier",
    "EarlyStopping",
    "LossKind",
    "Method",
    "MethodKind",
    "Objective",
    "OptimizerKind",
    "Precision",
    "Prediction",
    "Prior",
    "Samples",
    "ScheduleKind",
    "SplitChoice",
    "SplitKind",
    "Stage",
    "Targets",
    "TaskKind",
    "Training",
    "Unfreeze",
    "Validation",
    "resolved",
]
