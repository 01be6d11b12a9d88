"""A pretrained image classifier with a new head: loaded from a folder or the hub, for classes of its own.

Shapes: B pictures, H and W sides (px), K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as transformers_logging

from trainer.errors import BadSpecError, MissingModelError, first_line, hub_problem
from trainer.protocol.settings import Base

#: Of the weights of a new head: small, so that every class begins with almost the same probability and the loss with
#: ln K (as in the linear classification of MoCo, He et al. 2020, arXiv:1911.05722).
_HEAD_STD = 0.01
_ADVICE = "Choose an image classifier in transformers layout, such as microsoft/resnet-18."


@dataclass(kw_only=True)
class Classifier:
    """A backbone and its head, in fp32 on the CPU when loaded."""

    source: str
    #: The transformers model; `head` is one of its children, and `backbone` another.
    model: Any
    class_names: tuple[str, ...]
    #: Side of the pictures that it was trained on, px.
    resolution: int
    #: Of its pictures' channels, 0..1.
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

    def logits(self, pictures_BCHW: Tensor, dropout_seeds: Sequence[int] | None = None) -> Tensor:
        """What the head says of pictures (uint8), [B, K] in fp32.

        In training mode features are dropped as `dropout_seeds` say, one for each picture; None drops nothing.
        """
        device = next(self.head.parameters()).device
        pixels_BCHW = pictures_BCHW.to(device).float() / 255
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        with self._dropout.seeded(dropout_seeds):
            logits_BK: Tensor = self.model(pixel_values=(pixels_BCHW - mean) / std).logits
        return logits_BK.float()

    def check_resolution(self, resolution: int) -> None:
        """A vision transformer has a position for each patch, and reads pictures of one size.

        Raises:
            BadSpecError: the classifier cannot read pictures of that side.
        """
        is_fixed = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        if is_fixed and resolution != self.resolution:
            raise BadSpecError(
                f"{self.source} reads pictures of {self.resolution} px only, and training.resolution is {resolution}.",
                "Leave training.resolution (and that of the stages) away.",
            )


class HeadDropout:
    """Dropout of the features before the head, each picture's drawn from a seed of its own.

    A hook, not a layer: the files must have the names that transformers knows.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._seeds: Sequence[int] | None = None

    @contextmanager
    def seeded(self, seeds: Sequence[int] | None) -> Iterator[None]:
        """Drop by these seeds within."""
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


def load_classifier(base: Base, class_names: Sequence[str], *, head_seed: int, dropout: float = 0.0) -> Classifier:
    """The pretrained classifier of a job with a new head for `class_names`, whatever it told apart before.

    The head is a function of `head_seed` and its shape alone.

    Raises:
        MissingModelError: it is not there, cannot be reached, needs a licence, is damaged, or is no classifier.
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
    _renew(model.classifier, head_seed)
    hook = HeadDropout(dropout)
    model.classifier.register_forward_pre_hook(hook)
    is_normalized = bool(processor.do_normalize)
    return Classifier(
        source=base.source,
        model=model.float().eval(),
        class_names=tuple(class_names),
        resolution=_side(processor),
        mean=tuple(processor.image_mean) if is_normalized else (0.0,) * 3,
        std=tuple(processor.image_std) if is_normalized else (1.0,) * 3,
        _dropout=hook,
    )


def set_training(module: nn.Module, is_training: bool) -> None:
    """Training mode for what is trained; frozen parts, and all batch norms, stay in eval mode.

    A batch norm goes on using the statistics that it was pretrained with: those of a few pictures would spoil the
    features, and make what is learnt depend on the size of the micro-batch and the number of processes. Its weights
    train as others do. (Keras' guide to transfer learning, "fine-tuning", advises the same.)
    """
    parameters = list(module.parameters())
    is_frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    module.training = is_training and not is_frozen and not isinstance(module, nn.modules.batchnorm._BatchNorm)
    for child in module.children():
        set_training(child, module.training)


def block_names(module: nn.Module, name: str) -> Iterator[str]:
    """Dotted names of the parts of a backbone, from the input to the output: the items of its lists of stages or
    layers, and what stands beside them."""
    for child_name, child in module.named_children():
        full_name = f"{name}.{child_name}"
        if isinstance(child, nn.ModuleList):
            yield from (f"{full_name}.{place}" for place in range(len(child)))
        elif any(isinstance(grandchild, nn.ModuleList) for grandchild in child.children()):
            yield from block_names(child, full_name)
        elif any(True for _ in child.parameters()):
            yield full_name


def _location(source: str) -> str:
    """What the loaders are to be given: a folder that exists, else a hub name."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MissingModelError(f"{source} holds no config.json and is no transformers model.", _ADVICE)
        return str(path)
    if path.is_file() or path.is_absolute() or source.count("/") != 1 or source.startswith((".", "~")):
        raise MissingModelError(f"There is no image classifier at {source}.", _ADVICE)
    return source


@contextmanager
def _quiet() -> Iterator[None]:
    """That the old head does not fit is what is wanted: transformers need not report it."""
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _load_model(location: str, revision: str | None, class_names: Sequence[str]) -> Any:
    # The parts that are missing are drawn at random: the caller's random state must not notice.
    with torch.random.fork_rng(devices=[]):
        model, info = AutoModelForImageClassification.from_pretrained(
            location,
            revision=revision,
            id2label=dict(enumerate(class_names)),
            label2id={name: place for place, name in enumerate(class_names)},
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
    """Raises: MissingModelError: the model is laid out in another way than backbone and `classifier`."""
    head, backbone = getattr(model, "classifier", None), model.base_model
    parts = [part for part in (head, backbone) if isinstance(part, nn.Module) and part is not model]
    covered = sum(parameter.numel() for part in parts for parameter in part.parameters())
    if len(parts) != 2 or covered != sum(parameter.numel() for parameter in model.parameters()):
        raise MissingModelError(
            f"{source} is a {model.config.model_type} model, which is not made of one backbone and one head.", _ADVICE
        )


def _renew(head: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=_HEAD_STD, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _side(processor: Any) -> int:
    """Side of the square that the model's own processor makes of a picture, px."""
    crop, size = getattr(processor, "crop_size", None), processor.size
    if getattr(processor, "do_center_crop", False) and crop:
        return int(crop["height"])
    return int(size["shortest_edge"] if size.get("shortest_edge") else size["height"])


def _explain(source: str, error: Exception) -> MissingModelError:
    why = f"{source} cannot be loaded as an image classifier ({first_line(error)})."
    return hub_problem(source, error) or MissingModelError(why, _ADVICE)
