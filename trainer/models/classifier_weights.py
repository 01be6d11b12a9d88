"""All weights of a classifier as what is trained: by name, in and out of checkpoints, and as files for others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from trainer.errors import CheckpointError
from trainer.models.classifier import Classifier, block_names
from trainer.models.methods.trained import ExportedFile, Weights
from trainer.protocol.events import ExportFormat

#: Pillow's number for bicubic, which every backend of transformers knows.
_BICUBIC = 3
FOLDER, LABELS_FILE = "classifier", "labels.json"


class ClassifierWeights:
    """Backbone and head; what of them is trained is a matter of the stages."""

    def __init__(self, classifier: Classifier, *, resolution: int) -> None:
        self._classifier = classifier
        #: Side of the pictures that the exported processor makes, px.
        self._resolution = resolution
        self._before = self.state()

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"backbone": self._classifier.backbone, "head": self._classifier.head}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self.modules.items():
            for name, parameter in module.named_parameters():
                yield f"{prefix}.{name}", parameter

    @property
    def blocks(self) -> Sequence[str]:
        return (*block_names(self._classifier.backbone, "backbone"), "head")

    def state(self) -> Weights:
        """All weights and the statistics of batch norms, copied to the CPU."""
        return {
            prefix: {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}
            for prefix, module in self.modules.items()
        }

    def load(self, weights: Weights) -> None:
        """Put back what `state` gave.

        Raises:
            CheckpointError: the weights are of another job.
        """
        try:
            for prefix, module in self.modules.items():
                module.load_state_dict(dict(weights[prefix]))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                "The checkpoint holds the weights of another classifier.",
                "Start the job again in a folder of its own.",
            ) from error

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """The pretrained backbone with the untrained head."""
        trained = self.state()
        self.load(self._before)
        try:
            yield
        finally:
            self.load(trained)

    def export(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> list[ExportedFile]:
        """Write `classifier/`: `model.safetensors`, `config.json` with the classes, `preprocessor_config.json` that
        makes pictures as they were trained on, and `labels.json`, the classes in their order."""
        path = folder / FOLDER
        path.mkdir(parents=True, exist_ok=True)
        classifier = self._classifier
        classifier.model.save_pretrained(path)
        _write_json(path / "preprocessor_config.json", self._processor())
        _write_json(path / LABELS_FILE, list(classifier.class_names))
        return [ExportedFile(format=ExportFormat.TRANSFORMERS, path=path)]

    def _processor(self) -> dict[str, Any]:
        """Shorter side to the resolution, then the middle square: what `trainer/dataset/buckets.py::fit` does.

        The one processor of transformers that does no more than that goes by the name of BiT.
        """
        side = self._resolution
        return {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": _BICUBIC,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self._classifier.mean),
            "image_std": list(self._classifier.std),
        }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
