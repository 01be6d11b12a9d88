"""The methods by which a model is trained, one door: attach one to a base, and load back what it exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from trainer.models.base import BaseModel, load_base
from trainer.models.methods.trained import ExportedFile, Trained
from trainer.protocol.settings import MethodKind
from trainer.protocol.spec import Spec


def attach(base: BaseModel, spec: Spec) -> Trained:
    """Attach the method of a spec to a freshly loaded base, which is changed in place.

    Raises:
        BadSpecError: the method does not fit the base, or a pattern names no layer of it.
    """
    # Each kind brings libraries of its own, which take time to import.
    match spec.method.kind:
        case MethodKind.FULL:
            from trainer.models.methods.full import attach_full

            return attach_full(base, spec.method, lambda: load_base(spec.base, spec.objective))
        case MethodKind.TEXTUAL_INVERSION:
            from trainer.models.methods.inversion import attach_inversion

            return attach_inversion(base, spec.method, spec.training.trigger)
        case _:
            from trainer.models.methods.adapters import attach_adapter

            return attach_adapter(base, spec.method)


@contextmanager
def loaded_back(file: ExportedFile, spec: Spec) -> Iterator[tuple[BaseModel, Callable[[str], str]]]:
    """A fresh model with an exported file, loaded as people load it, and how captions are written for it.

    Raises:
        ExportError: the file cannot be loaded.
    """
    if spec.method.kind is MethodKind.FULL:
        from trainer.models.methods.full import load_back as load_model

        yield load_model(file, spec.base, spec.objective), str
        return
    fresh = load_base(spec.base, spec.objective)
    if spec.method.kind is MethodKind.TEXTUAL_INVERSION:
        from trainer.models.methods.inversion import load_back as load_word

        yield fresh, load_word(file, fresh, spec.training.trigger)
        return
    from trainer.models.methods.loading_back import load_back as load_adapter

    with load_adapter(file, fresh, spec.method):
        yield fresh, str


def as_exported(trained: Trained) -> AbstractContextManager[None]:
    """The model with weights as precise as its files have them, where that is less than what was trained."""
    from trainer.models.methods.full import FullTraining

    return trained.as_exported() if isinstance(trained, FullTraining) else nullcontext()
