"""The classification task: load, encode, loss, predictions and metrics.

Shapes: B batch, K classes, H and W sides of the images, px.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.mixing import Mixture
from trainer.dataset.split.overlap import JobImage
from trainer.device import autocast
from trainer.errors import BadSpecError, DatasetError
from trainer.models.classifier import ClassifierWeights, LoadedClassifier, load_classifier, set_training
from trainer.models.methods.trained import ExportedFile, Trained
from trainer.protocol.report import Split
from trainer.protocol.settings import ClassWeights, MixRole
from trainer.protocol.spec import Spec
from trainer.protocol.text import _, listed, ngettext
from trainer.protocol.training_settings import Precision
from trainer.report.confusion import describe_confusion, draw_confusion
from trainer.report.gallery import draw_prediction
from trainer.tasks.examples import Examples, ImageView, encode_members
from trainer.tasks.memory_prediction import StepSettings
from trainer.tasks.pixels import as_image, encode_pixels, encode_variants
from trainer.tasks.task import DrawnSample, FrozenLoss, Verified
from trainer.tasks.verify import verify_folder

#: Images shown after an epoch.
_SHOWN = 8
#: Batch size without gradients.
_BATCH = 32
#: Names listed in an error.
_LISTED = 3
_ADVICE = "Put the images into one folder per class, or name the class of each in a table, and prepare them again."


class ClassificationTask:
    """A pretrained classifier with a new head, and the datasets as pixels and classes."""

    #: There is no noise.
    schedule_steps = 1

    def __init__(self, spec: Spec, mixture: Mixture, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.precision = Precision.FP32
        self.mixture = mixture
        names = class_names(mixture.members)
        self.classifier: LoadedClassifier = load_classifier(
            spec.base,
            names,
            head_seed=derive_seed("head", spec.training.seed),
            dropout=spec.classifier.dropout,
        )
        self.resolution = spec.training.resolution or self.classifier.resolution
        self.classifier.check_resolution(self.resolution)
        self.trained: Trained = ClassifierWeights(self.classifier, resolution=self.resolution)
        self._class_index = {name: index for index, name in enumerate(names)}
        if spec.training.gradient_checkpointing:
            self._checkpoint_gradients()

    def __repr__(self) -> str:
        return f"<ClassificationTask {self.spec.base.source}: {', '.join(self.class_names)} on {self.device}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.classifier.class_names

    @property
    def weights(self) -> int:
        return sum(parameter.numel() for parameter in self.classifier.model.parameters())

    def predict_memory(self, settings: StepSettings, *, with_samples: bool = True) -> None:
        """Return None: classifiers are small."""

    def encode(self, resolution: int, progress: Callable[[int, int], None]) -> dict[Split, Examples]:
        """Encode every split as pixels, or read it from the cache; the captions are the classes.

        Raises:
            DatasetError: an image is missing or damaged.
            BadSpecError: the classifier cannot read images of that size.
        """
        self.classifier.check_resolution(resolution)
        members, augmentation, seed = self.mixture.members, self.spec.augmentation, self.spec.training.seed
        originals, variants = encode_members(
            self.mixture,
            augmentation,
            progress,
            images=lambda folder, indices, tick: encode_pixels(
                folder, [members[index].image for index in indices], resolution, tick
            ),
            variants=lambda folder, indices, tick: encode_variants(
                folder, [members[index].image for index in indices], resolution, augmentation, seed, tick
            ),
        )
        class_weights, regularization_weight = (
            self.spec.classifier.class_weights,
            self.spec.training.regularization_weight,
        )
        return Examples(
            members=tuple(members),
            sizes=((resolution, resolution),) * len(members),
            caption_orders=tuple((member.image.class_name,) for member in members),
            loss_weights=tuple(loss_weights(self.mixture, class_weights, regularization_weight)),
            originals=originals,
            variants=variants,
        ).by_split()

    def place(self, precision: Precision) -> None:
        """Move the classifier to the device. All of it stays in fp32: a later stage may train any part."""
        self.precision = precision
        self.classifier.model.to(self.device)
        if self.spec.training.compile:
            self.classifier.backbone.compile()

    def train_mode(self, is_training: bool) -> None:
        set_training(self.classifier.model, is_training)

    def train_loss(self, examples: Examples, views: Sequence[ImageView], seeds: Sequence[int]) -> Tensor:
        """Cross-entropy of each view, [B], smoothed and weighted; `seeds` determine dropout."""
        logits_BK = self._logits(examples.inputs(views), seeds)
        return self._training_loss(logits_BK, examples, [view.index for view in views])

    @torch.no_grad()
    def frozen_losses(
        self, examples: Examples, indices: Sequence[int], timesteps: Sequence[int], noise_seeds: Sequence[int]
    ) -> list[FrozenLoss]:
        """Losses of the images; timesteps and noise seeds are unused."""
        logits_BK = self._logits(examples.inputs([ImageView(index=index) for index in indices]))
        plain_B = cross_entropy(logits_BK, self._targets(examples, indices), reduction="none")
        training_B = self._training_loss(logits_BK, examples, indices)
        return FrozenLoss.of_batch(plain_B.tolist(), training_B.tolist())

    def base_only(self) -> AbstractContextManager[None]:
        """The pretrained backbone with the untrained head."""
        return self.trained.base_only()

    def draw(
        self, examples: Examples, folder: Path, *, shard: slice, progress: Callable[[int, int], None]
    ) -> list[DrawnSample]:
        """Draw images of all classes with the predicted class; the prompt is the true class."""
        chosen = _spread(examples)
        shown = [
            DrawnSample(path=folder / f"{number}.png", prompt=examples.captions[index], seed=0)
            for number, index in enumerate(chosen)
        ]
        probabilities_NK = self._probabilities(examples, chosen[shard], lambda: progress(0, len(shown)))
        for index, each, probability_K in zip(chosen[shard], shown[shard], probabilities_NK, strict=True):
            predicted = self.class_names[int(probability_K.argmax())]
            draw_prediction(
                each.path,
                as_image(examples.inputs([ImageView(index=index)])[0]),
                label=predicted,
                confidence=float(probability_K.max()),
                is_right=predicted == each.prompt,
            )
        return shown

    def draw_prompts(
        self, prompts: Sequence[str], folder: Path, *, shard: slice, progress: Callable[[int, int], None]
    ) -> list[DrawnSample]:
        """Return nothing: a classifier draws no images."""
        return []

    def metrics(self, examples: Examples, between_batches: Callable[[], None]) -> Mapping[str, float]:
        """Accuracy, balanced accuracy and macro F1, 0 to 1; empty for an empty split."""
        if not examples.members:
            return {}
        # Takes half a second to import, so not before the first epoch has ended.
        from sklearn.metrics import accuracy_score, f1_score, recall_score

        true, predicted = self._answers(examples, between_batches)
        # Classes without an image in this split count in neither mean.
        present = sorted(set(true))
        options: dict[str, Any] = {"labels": present, "average": "macro", "zero_division": 0.0}
        return {
            "accuracy": float(accuracy_score(true, predicted)),
            "balanced_accuracy": float(recall_score(true, predicted, **options)),
            "f1": float(f1_score(true, predicted, **options)),
        }

    def draw_chart(self, examples: Examples, path: Path, between_batches: Callable[[], None]) -> str | None:
        """Draw the confusion matrix of a split, and describe it in a sentence; None for an empty split."""
        if not examples.members:
            return None
        counts = [[0] * len(self.class_names) for _ in self.class_names]
        for true, predicted in zip(*self._answers(examples, between_batches), strict=True):
            counts[true][predicted] += 1
        title = f"{self.spec.name}: {examples.members[0].split} images"
        draw_confusion(path, title=title, class_names=self.class_names, counts=counts)
        return describe_confusion(self.class_names, counts)

    def compare(
        self,
        examples: Examples,
        path: Path | None,
        samples: Callable[[], tuple[Sequence[DrawnSample], Sequence[DrawnSample]]],
        *,
        title: str,
        gain: str,
        between_batches: Callable[[], None],
    ) -> str:
        """Draw the confusion matrix of the trained classifier; the untrained head is no useful comparison."""
        return "" if path is None else self.draw_chart(examples, path, between_batches) or ""

    def describe(self) -> Mapping[str, Any]:
        """The classes, in the order of the head's outputs."""
        return {"classes": list(self.class_names)}

    def verify(
        self, files: Sequence[ExportedFile], examples: Examples, progress: Callable[[int, int], None]
    ) -> list[Verified]:
        """Load each folder with transformers and compare its logits with the trained classifier's.

        Raises:
            ExportError: a folder cannot be loaded, or predicts something else.
        """
        self.train_mode(False)
        pixels_BCHW = examples.inputs([ImageView(index=index) for index in _spread(examples)])
        with torch.no_grad():
            logits_BK = self.classifier.logits(pixels_BCHW).cpu()
        pil_images = [as_image(pixels_CHW) for pixels_CHW in pixels_BCHW]
        return [verify_folder(file, pil_images, logits_BK, self.class_names, self.device) for file in files]

    def _logits(self, pixels_BCHW: Tensor, dropout_seeds: Sequence[int] | None = None) -> Tensor:
        seeds = None if dropout_seeds is None else [derive_seed("dropout", seed) for seed in dropout_seeds]
        with autocast(self.device, self.precision):
            return self.classifier.logits(pixels_BCHW, seeds)

    def _targets(self, examples: Examples, indices: Sequence[int]) -> Tensor:
        return torch.tensor([self._class_index[examples.captions[index]] for index in indices], device=self.device)

    def _training_loss(self, logits_BK: Tensor, examples: Examples, indices: Sequence[int]) -> Tensor:
        smoothing = self.spec.classifier.label_smoothing
        targets_B = self._targets(examples, indices)
        loss_B = cross_entropy(logits_BK, targets_B, reduction="none", label_smoothing=smoothing)
        return loss_B * torch.tensor([examples.loss_weights[index] for index in indices]).to(loss_B)

    @torch.no_grad()
    def _probabilities(
        self, examples: Examples, indices: Sequence[int], between_batches: Callable[[], None]
    ) -> list[Tensor]:
        """Class probabilities of images, [K] each, on the CPU."""
        self.train_mode(False)
        probabilities: list[Tensor] = []
        for start in range(0, len(indices), _BATCH):
            between_batches()
            views = [ImageView(index=index) for index in indices[start : start + _BATCH]]
            probabilities.extend(self._logits(examples.inputs(views)).softmax(dim=1).cpu())
        return probabilities

    def _answers(self, examples: Examples, between_batches: Callable[[], None]) -> tuple[list[int], list[int]]:
        """Indices of the true and the predicted class of each image."""
        probabilities_NK = self._probabilities(examples, range(len(examples.members)), between_batches)
        true = [self._class_index[name] for name in examples.captions]
        return true, [int(probability_K.argmax()) for probability_K in probabilities_NK]

    def _checkpoint_gradients(self) -> None:
        model = self.classifier.model
        if not model.supports_gradient_checkpointing:
            raise BadSpecError(
                f"{self.spec.base.source} does not support gradient checkpointing.",
                "Set training.gradient_checkpointing to false; a smaller training.micro_batch_size saves memory too.",
            )
        model.gradient_checkpointing_enable()


def _spread(examples: Examples) -> list[int]:
    """Choose `_SHOWN` images, taking turns between the classes; depends on the content only."""
    by_class: dict[str, list[int]] = defaultdict(list)
    contents = examples.contents
    for index in sorted(range(len(contents)), key=lambda index: derive_seed("shown", contents[index])):
        by_class[examples.captions[index]].append(index)
    rounds = zip_longest(*(by_class[name] for name in sorted(by_class)))
    return [index for each in rounds for index in each if index is not None][:_SHOWN]


def class_names(members: Sequence[JobImage]) -> tuple[str, ...]:
    """The classes of the images, sorted.

    Raises:
        DatasetError: images have no class, all have the same, or a class has no training image.
    """
    unnamed = [member.image.source for member in members if not member.image.class_name]
    if len(unnamed) == len(members):
        raise DatasetError(_("No image has a class."), _ADVICE)
    if unnamed:
        counted = ngettext(
            "{n} of {all} images has no class: {names}.",
            "{n} of {all} images have no class: {names}.",
            len(unnamed),
            all=len(members),
            names=listed(unnamed, most=_LISTED),
        )
        raise DatasetError(counted, _ADVICE)
    trained = {member.image.class_name for member in members if member.split is Split.TRAIN}
    names = sorted({member.image.class_name for member in members})
    if len(names) == 1:
        raise DatasetError(
            _("All {n} images are of one class, {name}.", n=len(members), name=names[0]),
            _("A classifier needs at least two."),
        )
    untrained = [name for name in names if name not in trained]
    if untrained:
        raise DatasetError(
            _("No training images of: {names}.", names=listed(untrained, most=_LISTED)),
            _("Add images of each class, or drop the class, and prepare the dataset again."),
        )
    return tuple(names)


def loss_weights(mixture: Mixture, kind: ClassWeights, regularization_weight: float) -> list[float]:
    """The loss weight of each member; 1 on average over an epoch.

    Balanced: n / (k * n_c) for n views of k classes, n_c of them of the image's class (King & Zeng 2001, as
    `sklearn.utils.class_weight.compute_class_weight`). Regularization images get `regularization_weight` times that.
    """
    of_class = _balanced(mixture) if kind is ClassWeights.BALANCED else {}
    return [
        of_class.get(member.image.class_name, 1.0)
        * (regularization_weight if mixture.source_of(member).role is MixRole.REGULARIZATION else 1.0)
        for member in mixture.members
    ]


def _balanced(mixture: Mixture) -> Mapping[str, float]:
    views: Counter[str] = Counter()
    for member in mixture.of(Split.TRAIN):
        views[member.image.class_name] += member.image.repeats * mixture.source_of(member).repeats
    return {name: views.total() / (len(views) * count) for name, count in views.items()}
