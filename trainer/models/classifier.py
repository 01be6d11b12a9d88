"""A pretrained image classifier with a new head, from a folder or the hub, and its weights and export.

Shapes: B images, H and W sides (px), K classes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from trainer.errors import BadSpecError, CheckpointError, MissingModelError, first_line, hub_problem
from trainer.models.methods.trained import ExportedFile, Weights
from trainer.protocol.events import ExportFormat, Reader
from trainer.protocol.settings import Base

#: Standard deviation of a new head's weights: small, so that all classes start almost equally likely and the loss near
#: ln K (as in MoCo's linear classification, He et al. 2020, arXiv:1911.05722).
_HEAD_STD = 0.01
_ADVICE = "Choose an image classifier in transformers layout, such as microsoft/resnet-18."


@dataclass(kw_only=True)
class LoadedClassifier:
    """A backbone and its head, in fp32 on the CPU when loaded."""

    source: str
    #: The transformers model; `head` is one of its children, and `backbone` another.
    model: Any
    class_names: tuple[str, ...]
    #: Side of the images that it was trained on, px.
    resolution: int
    #: Of its images' channels, 0..1.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    _dropout: HeadDropout = field(repr=False)

    @property
    def backbone(self) -> nn.Module:
        backbone: nn.Module = self.model.base_model
        return backbone

    @property
    def head(self) -> nn.Module:
        head: nn.Module = self.model.classifier
        return head

    def logits(self, images_BCHW: Tensor, dropout_seeds: Sequence[int] | None = None) -> Tensor:
        """Logits of images (uint8), [B, K] in fp32.

        In training mode, `dropout_seeds` (one per image) decide which features are dropped; None drops nothing.
        """
        device = next(self.head.parameters()).device
        pixels_BCHW = images_BCHW.to(device).float() / 255
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        with self._dropout.seeded(dropout_seeds):
            logits_BK: Tensor = self.model(pixel_values=(pixels_BCHW - mean) / std).logits
        return logits_BK.float()

    def check_resolution(self, resolution: int) -> None:
        """Check the resolution: a vision transformer has one position per patch and reads one size only.

        Raises:
            BadSpecError: the classifier cannot read images of that size.
        """
        is_fixed = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        if is_fixed and resolution != self.resolution:
            raise BadSpecError(
                f"{self.source} reads images of {self.resolution} px only, but training.resolution is {resolution}.",
                "Remove training.resolution (and that of the stages).",
            )


class HeadDropout:
    """Dropout of the features before the head, with a seed per image.

    A hook, not a layer, so that the weights keep the names that transformers expects.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._seeds: Sequence[int] | None = None

    @contextmanager
    def seeded(self, seeds: Sequence[int] | None) -> Iterator[None]:
        """Use these seeds inside of the context."""
        self._seeds = seeds
        try:
            yield
        finally:
            self._seeds = None

    def __call__(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self._share or self._seeds is None or not head.training:
            return None
        features = inputs[0]
        kept = torch.stack(
            [torch.rand(features.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in self._seeds]
        )
        return (features * (kept >= self._share).to(features) / (1 - self._share), *inputs[1:])


def load_classifier(
    base: Base, class_names: Sequence[str], *, head_seed: int, dropout: float = 0.0
) -> LoadedClassifier:
    """Load a pretrained classifier and give it a new head for `class_names`.

    The head's weights depend on `head_seed` and its shape only.

    Raises:
        MissingModelError: it does not exist, cannot be reached, is gated, is damaged, or is not a classifier.
    """
    location = _location(base.source)
    try:
        with _quiet():
            model = _load_model(location, base.revision, class_names)
            processor = AutoImageProcessor.from_pretrained(
                location, revision=base.revision, backend="pil", trust_remote_code=False
            )
    except Exception as error:
        # The loaders raise anything from KeyError to httpx errors.
        raise _explain(base.source, error) from error
    _check_layout(base.source, model)
    _initialize(model.classifier, head_seed)
    hook = HeadDropout(dropout)
    model.classifier.register_forward_pre_hook(hook)
    is_normalized = bool(processor.do_normalize)
    return LoadedClassifier(
        source=base.source,
        model=model.float().eval(),
        class_names=tuple(class_names),
        resolution=_side(processor),
        mean=tuple(processor.image_mean) if is_normalized else (0.0,) * 3,
        std=tuple(processor.image_std) if is_normalized else (1.0,) * 3,
        _dropout=hook,
    )


def set_training(module: nn.Module, is_training: bool) -> None:
    """Set training mode on trained modules; frozen modules and all batch norms stay in eval mode.

    Batch norms keep their pretrained statistics: those of a few images would degrade the features, and would make the
    result depend on the micro-batch size and the number of processes. Their weights are trained. (Keras' guide to
    transfer learning, "fine-tuning", advises the same.)
    """
    parameters = list(module.parameters())
    is_frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    module.training = is_training and not is_frozen and not isinstance(module, nn.modules.batchnorm._BatchNorm)
    for child in module.children():
        set_training(child, module.training)


def block_names(module: nn.Module, name: str) -> Iterator[str]:
    """Yield dotted names of a backbone's blocks from input to output: the items of its lists of stages or layers, and
    the modules beside them."""
    for child_name, child in module.named_children():
        full_name = f"{name}.{child_name}"
        if isinstance(child, nn.ModuleList):
            yield from (f"{full_name}.{index}" for index in range(len(child)))
        elif any(isinstance(grandchild, nn.ModuleList) for grandchild in child.children()):
            yield from block_names(child, full_name)
        elif any(True for _ in child.parameters()):
            yield full_name


def _location(source: str) -> str:
    """Return what the loaders take: an existing folder, or else a hub name."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MissingModelError(f"{source} has no config.json, so it is not a transformers model.", _ADVICE)
        return str(path)
    if path.is_file() or path.is_absolute() or source.count("/") != 1 or source.startswith((".", "~")):
        raise MissingModelError(f"There is no image classifier at {source}.", _ADVICE)
    return source


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers: it would warn that the old head does not fit, which is intended."""
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _load_model(location: str, revision: str | None, class_names: Sequence[str]) -> Any:
    # transformers initializes missing weights at random; keep that from the caller's random state.
    with torch.random.fork_rng(devices=[]):
        model, info = AutoModelForImageClassification.from_pretrained(
            location,
            revision=revision,
            id2label=dict(enumerate(class_names)),
            label2id={name: index for index, name in enumerate(class_names)},
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = [name for name in info["missing_keys"] if not name.startswith("classifier.")]
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing or under other names, such as {missing[0]}")
    return model


def _check_layout(source: str, model: Any) -> None:
    """Raise MissingModelError unless the model consists of a backbone and a `classifier`."""
    head, backbone = getattr(model, "classifier", None), model.base_model
    parts = [part for part in (head, backbone) if isinstance(part, nn.Module) and part is not model]
    covered = sum(parameter.numel() for part in parts for parameter in part.parameters())
    if len(parts) != 2 or covered != sum(parameter.numel() for parameter in model.parameters()):
        raise MissingModelError(
            f"{source} is a {model.config.model_type} model, which does not consist of one backbone and one head.",
            _ADVICE,
        )


def _initialize(head: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=_HEAD_STD, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _side(processor: Any) -> int:
    """Side of the square that the model's processor outputs, px."""
    crop, size = getattr(processor, "crop_size", None), processor.size
    if getattr(processor, "do_center_crop", False) and crop:
        return int(crop["height"])
    return int(size["shortest_edge"] if size.get("shortest_edge") else size["height"])


def _explain(source: str, error: Exception) -> MissingModelError:
    why = f"{source} cannot be loaded as an image classifier ({first_line(error)})."
    return hub_problem(source, error) or MissingModelError(why, _ADVICE)


#: Pillow's number for bicubic resampling, understood by every backend of transformers.
_BICUBIC = 3
FOLDER, LABELS_FILE = "classifier", "labels.json"


class ClassifierWeights:
    """A `Trained`: backbone and head; the stages decide which blocks of them are trained."""

    def __init__(self, classifier: LoadedClassifier, *, resolution: int) -> None:
        self._classifier = classifier
        #: Side of the images that the exported processor makes, px.
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

    def weights_from(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Raise CheckpointError: a trained classifier is named as `base.source`, not as weights to start from."""
        raise CheckpointError("A classifier does not start from a file.", "Set base.source to its folder.")

    def load(self, weights: Weights) -> None:
        """Restore what `state` returned.

        Raises:
            CheckpointError: the weights do not fit this job.
        """
        try:
            for prefix, module in self.modules.items():
                module.load_state_dict(dict(weights[prefix]))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                "The checkpoint has the weights of another classifier.",
                "Start the job again in a new folder.",
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
        """Write `classifier/`: `model.safetensors`, `config.json` with the classes, `preprocessor_config.json` for the
        preprocessing used in training, and `labels.json`, the classes in order."""
        path = folder / FOLDER
        path.mkdir(parents=True, exist_ok=True)
        classifier = self._classifier
        classifier.model.save_pretrained(path)
        _write_json(path / "preprocessor_config.json", self._processor())
        _write_json(path / LABELS_FILE, list(classifier.class_names))
        return [ExportedFile(format=ExportFormat.TRANSFORMERS, path=path, readers=(Reader.TRANSFORMERS,))]

    def export_epoch(self, folder: Path, name: str, epoch: int, metadata: Mapping[str, Any]) -> ExportedFile | None:
        """Return None: a classifier has no file for other programs than its folder."""
        return None

    def _processor(self) -> dict[str, Any]:
        """The preprocessing of `trainer/dataset/buckets.py`: shorter side to the resolution, then a center crop.

        BiT's is the only processor of transformers that does just this.
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
