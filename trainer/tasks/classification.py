"""Training of an image classifier: what the recipe needs to know of it (load, encode, loss, show).

Shapes: B batch, K classes, H and W sides of the pictures, px.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.mixing import Mixture
from trainer.device import autocast
from trainer.errors import BadSpecError
from trainer.models.classifier import Classifier, load_classifier, set_training
from trainer.models.classifier_weights import ClassifierWeights
from trainer.models.methods.trained import ExportedFile, Trained
from trainer.protocol.mix import MixRole
from trainer.protocol.report import Split
from trainer.protocol.settings import Precision
from trainer.protocol.spec import Spec
from trainer.report.confusion import confusion_in_words, draw_confusion
from trainer.report.verdicts import draw_verdict
from trainer.tasks.classes import class_names, loss_weights
from trainer.tasks.examples import Encoded, Examples, View
from trainer.tasks.pixels import as_picture, encode_pixels, encode_variants
from trainer.tasks.task import FrozenLoss, Shown, Verified
from trainer.tasks.verify_classifier import verify_folder

#: Pictures that are shown after an epoch, and that go through the model at once where nothing is learnt.
_SHOWN, _BATCH = 8, 32


class ClassificationTask:
    """A pretrained classifier with a new head, and the datasets as pixels with their classes."""

    #: A picture is asked about as it is: there is no noise.
    schedule_steps = 1

    def __init__(self, spec: Spec, mixture: Mixture, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.precision = Precision.FP32
        self.mixture = mixture
        names = class_names(mixture.members)
        self.classifier: Classifier = load_classifier(
            spec.base,
            names,
            head_seed=derive_seed("head", spec.training.seed),
            dropout=spec.classifier.dropout,
        )
        self.resolution = spec.training.resolution or self.classifier.resolution
        self.classifier.check_resolution(self.resolution)
        self.trained: Trained = ClassifierWeights(self.classifier, resolution=self.resolution)
        self._places = {name: place for place, name in enumerate(names)}
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

    def encode(self, resolution: int, progress: Callable[[int, int], None]) -> dict[Split, Examples]:
        """The pixels of every split, from the cache or made once; their captions are their classes.

        Raises:
            DatasetError: a picture of a dataset folder is gone or damaged.
            BadSpecError: the classifier cannot read pictures of that size.
        """
        self.classifier.check_resolution(resolution)
        members = self.mixture.members
        originals, variants = self._encode(resolution, progress)
        weights = loss_weights(
            self.mixture, self.spec.classifier.class_weights, self.spec.training.regularization_weight
        )
        by_split = {}
        for split in Split:
            chosen = [place for place, member in enumerate(members) if member.split is split]
            by_split[split] = Examples(
                members=tuple(members[i] for i in chosen),
                sizes=((resolution, resolution),) * len(chosen),
                caption_orders=tuple((members[i].image.class_name,) for i in chosen),
                loss_weights=tuple(weights[i] for i in chosen),
                originals=tuple(originals[i] for i in chosen),
                variants=tuple(variants.get(i) for i in chosen),
            )
        return by_split

    def place(self, precision: Precision) -> None:
        """Bring the classifier to the device. All of it stays in fp32: a later stage may train any of it."""
        self.precision = precision
        self.classifier.model.to(self.device)
        if self.spec.training.compile:
            self.classifier.backbone.compile()

    def train_mode(self, is_training: bool) -> None:
        set_training(self.classifier.model, is_training)

    def train_loss(self, examples: Examples, views: Sequence[View], seeds: Sequence[int]) -> Tensor:
        """Cross-entropy of each view, [B], smoothed and weighted; what dropout drops follows from `seeds`."""
        logits_BK = self._logits(examples.inputs(views), seeds)
        return self._training_loss(logits_BK, examples, [view.index for view in views])

    @torch.no_grad()
    def frozen_losses(
        self, examples: Examples, indices: Sequence[int], timesteps: Sequence[int], noise_seeds: Sequence[int]
    ) -> list[FrozenLoss]:
        """Losses of pictures as they are; there is neither timestep nor noise."""
        logits_BK = self._logits(examples.inputs([View(index=index) for index in indices]))
        plain_B = cross_entropy(logits_BK, self._targets(examples, indices), reduction="none")
        training_B = self._training_loss(logits_BK, examples, indices)
        return [
            FrozenLoss(plain=plain, training=training)
            for plain, training in zip(plain_B.tolist(), training_B.tolist(), strict=True)
        ]

    def base_only(self) -> AbstractContextManager[None]:
        """The pretrained backbone with the untrained head."""
        return self.trained.base_only()

    def draw(self, examples: Examples, folder: Path, *, shard: slice, between_steps: Callable[[], None]) -> list[Shown]:
        """Pictures of all classes with what the model says of them; under each stands its true class."""
        chosen = _spread(examples)
        shown = [
            Shown(path=folder / f"{place}.png", prompt=examples.captions[index], seed=0)
            for place, index in enumerate(chosen)
        ]
        probabilities_NK = self._probabilities(examples, chosen[shard], between_steps)
        for index, each, probability_K in zip(chosen[shard], shown[shard], probabilities_NK, strict=True):
            said = self.class_names[int(probability_K.argmax())]
            draw_verdict(
                each.path,
                as_picture(examples.inputs([View(index=index)])[0]),
                said=said,
                confidence=float(probability_K.max()),
                is_right=said == each.prompt,
            )
        return shown

    def draw_prompts(
        self, prompts: Sequence[str], folder: Path, *, shard: slice, between_steps: Callable[[], None]
    ) -> list[Shown]:
        """Nothing: a classifier draws no pictures."""
        return []

    def metrics(self, examples: Examples, between_batches: Callable[[], None]) -> Mapping[str, float]:
        """Accuracy, its mean over the classes, and the mean of their F1 scores; 0..1, nothing of no pictures."""
        if not examples.members:
            return {}
        # Half a second to load, after the first epoch.
        from sklearn.metrics import accuracy_score, f1_score, recall_score

        true, predicted = self._answers(examples, between_batches)
        # Classes that the split lacks count in neither mean.
        present = sorted(set(true))
        options: dict[str, Any] = {"labels": present, "average": "macro", "zero_division": 0.0}
        return {
            "accuracy": float(accuracy_score(true, predicted)),
            "balanced_accuracy": float(recall_score(true, predicted, **options)),
            "f1": float(f1_score(true, predicted, **options)),
        }

    def draw_chart(self, examples: Examples, path: Path, between_batches: Callable[[], None]) -> str | None:
        """The confusion matrix of a split, and what it shows as a sentence; None of no pictures."""
        if not examples.members:
            return None
        counts = [[0] * len(self.class_names) for _ in self.class_names]
        for true, predicted in zip(*self._answers(examples, between_batches), strict=True):
            counts[true][predicted] += 1
        title = f"{self.spec.name}: {examples.members[0].split} pictures"
        draw_confusion(path, title=title, class_names=self.class_names, counts=counts)
        return confusion_in_words(self.class_names, counts)

    def describe(self) -> Mapping[str, Any]:
        """The classes, in the order of the head's outputs."""
        return {"classes": list(self.class_names)}

    def verify(
        self, files: Sequence[ExportedFile], examples: Examples, between_files: Callable[[], None]
    ) -> list[Verified]:
        """Load each folder back with transformers, and compare what it says of pictures with what was trained.

        Raises:
            ExportError: a folder cannot be loaded, or says something else than the classifier that was trained.
        """
        self.train_mode(False)
        pixels_BCHW = examples.inputs([View(index=index) for index in _spread(examples)])
        with torch.no_grad():
            logits_BK = self.classifier.logits(pixels_BCHW).cpu()
        pictures = [as_picture(pixels_CHW) for pixels_CHW in pixels_BCHW]
        return [verify_folder(file, pictures, logits_BK, self.class_names, self.device) for file in files]

    def _encode(
        self, resolution: int, progress: Callable[[int, int], None]
    ) -> tuple[dict[int, Encoded], dict[int, Encoded]]:
        """All pictures and the variants of some, by place; each dataset has a cache of its own."""
        members, augmentation, seed = self.mixture.members, self.spec.augmentation, self.spec.training.seed
        # Only what is taught is varied: what measures stays as it is, and class pictures stand for themselves.
        is_varied = [
            augmentation.is_on and member.split is Split.TRAIN and self.mixture.source_of(member).role is MixRole.TRAIN
            for member in members
        ]
        done, total = count(), len(members) + augmentation.variants * sum(is_varied)

        def tick() -> None:
            progress(next(done), total)

        originals: dict[int, Encoded] = {}
        variants: dict[int, Encoded] = {}
        for number, source in enumerate(self.mixture.sources):
            places = [place for place, member in enumerate(members) if member.source == number]
            varied = [place for place in places if is_varied[place]]
            images = [members[place].image for place in places]
            originals |= zip(places, encode_pixels(source.folder, images, resolution, tick), strict=True)
            images = [members[place].image for place in varied]
            encoded = encode_variants(source.folder, images, resolution, augmentation, seed, tick)
            variants |= zip(varied, encoded, strict=True)
        return originals, variants

    def _logits(self, pixels_BCHW: Tensor, dropout_seeds: Sequence[int] | None = None) -> Tensor:
        seeds = None if dropout_seeds is None else [derive_seed("dropout", seed) for seed in dropout_seeds]
        with autocast(self.device, self.precision):
            return self.classifier.logits(pixels_BCHW, seeds)

    def _targets(self, examples: Examples, indices: Sequence[int]) -> Tensor:
        return torch.tensor([self._places[examples.captions[index]] for index in indices], device=self.device)

    def _training_loss(self, logits_BK: Tensor, examples: Examples, indices: Sequence[int]) -> Tensor:
        smoothing = self.spec.classifier.label_smoothing
        targets_B = self._targets(examples, indices)
        loss_B = cross_entropy(logits_BK, targets_B, reduction="none", label_smoothing=smoothing)
        return loss_B * torch.tensor([examples.loss_weights[index] for index in indices]).to(loss_B)

    @torch.no_grad()
    def _probabilities(
        self, examples: Examples, indices: Sequence[int], between_batches: Callable[[], None]
    ) -> list[Tensor]:
        """What the model says of pictures as they are, [K] on the CPU of each."""
        self.train_mode(False)
        said: list[Tensor] = []
        for start in range(0, len(indices), _BATCH):
            between_batches()
            views = [View(index=index) for index in indices[start : start + _BATCH]]
            said.extend(self._logits(examples.inputs(views)).softmax(dim=1).cpu())
        return said

    def _answers(self, examples: Examples, between_batches: Callable[[], None]) -> tuple[list[int], list[int]]:
        """The true and the predicted class of each picture, by place."""
        said = self._probabilities(examples, range(len(examples.members)), between_batches)
        true = [self._places[name] for name in examples.captions]
        return true, [int(probability_K.argmax()) for probability_K in said]

    def _checkpoint_gradients(self) -> None:
        model = self.classifier.model
        if not model.supports_gradient_checkpointing:
            raise BadSpecError(
                f"{self.spec.base.source} cannot compute activations again.",
                "Set training.gradient_checkpointing to false; a smaller training.micro_batch_size saves memory too.",
            )
        model.gradient_checkpointing_enable()


def _spread(examples: Examples) -> list[int]:
    """Few pictures for many classes: of each class in turn, those whose content comes first."""
    by_class: dict[str, list[int]] = defaultdict(list)
    contents = examples.contents
    for index in sorted(range(len(contents)), key=lambda index: derive_seed("shown", contents[index])):
        by_class[examples.captions[index]].append(index)
    rounds = zip_longest(*(by_class[name] for name in sorted(by_class)))
    return [index for each in rounds for index in each if index is not None][:_SHOWN]
