"""Training methods: attach one to a base, and load its exported files back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch

from trainer.models.base import LoadedBase, load_base
from trainer.models.methods.trained import ExportedFile, Trained
from trainer.protocol.settings import MethodKind
from trainer.protocol.spec import Spec


def attach(base: LoadedBase, spec: Spec) -> Trained:
    """Attach the method of a spec to a freshly loaded base, in place.

    Raises:
        BadSpecError: the method does not fit the base, or a pattern matches no layer.
    """
    # Imported when needed: each method loads libraries of its own.
    match spec.method.kind:
        case MethodKind.FULL:
            from trainer.models.methods.full import attach_full

            dtype = torch.bfloat16 if spec.training.bf16_weights else torch.float32
            reload_stored = partial(load_base, spec.base, spec.objective, as_stored=True)
            return attach_full(base, spec.method, reload_stored, dtype=dtype)
        case MethodKind.TEXTUAL_INVERSION:
            from trainer.models.methods.inversion import attach_inversion

            return attach_inversion(base, spec.method, spec.training.trigger)
        case _:
            from trainer.models.methods.adapters import attach_adapter

            reload = (lambda: load_base(spec.base, spec.objective)) if spec.exports.differences else None
            return attach_adapter(base, spec.method, reload)


@contextmanager
def loaded_back(
    file: ExportedFile, spec: Spec, fresh: LoadedBase | None = None
) -> Iterator[tuple[LoadedBase, Callable[[str], str]]]:
    """Load an exported file into a fresh model as users would; yields the model, and how to write captions for it.

    Args:
        fresh: The base with its weights as they are stored. An adapter is loaded into it and removed afterwards.

    Raises:
        ExportError: the file cannot be loaded.
    """
    if spec.method.kind is MethodKind.FULL:
        from trainer.models.methods.full import load_back as load_model

        yield load_model(file, spec.base, spec.objective), str
        return
    fresh = fresh or load_base(spec.base, spec.objective, as_stored=True)
    if spec.method.kind is MethodKind.TEXTUAL_INVERSION:
        from trainer.models.methods.inversion import load_back as load_word

        for encoder in fresh.clip_encoders.values():
            # diffusers would round the word to the dtype of the table.
            encoder.float()
        yield fresh, load_word(file, fresh, spec.training.trigger)
        return
    from trainer.models.methods.loading_back import load_back as load_adapter

    with load_adapter(file, fresh):
        yield fresh, str


def as_exported(trained: Trained) -> AbstractContextManager[None]:
    """Give the model the precision of its exported files for a while, where that is lower than in training."""
    from trainer.models.methods.full import FullTraining

    return trained.as_exported() if isinstance(trained, FullTraining) else nullcontext()


def widen(trained: Trained) -> None:
    """Convert trained weights to what they are trained in; those of adapters and new words are from the start."""
    from trainer.models.methods.full import FullTraining

    if isinstance(trained, FullTraining):
        trained.widen()
