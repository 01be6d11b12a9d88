"""Finds what a sampling job draws with: the result or an epoch of a training, or an adapter from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from trainer.errors import BadSpecError, CheckpointError
from trainer.exchange.event_file import read_all_events
from trainer.exchange.files import locate
from trainer.exchange.job_dir import dataset_path, read_spec
from trainer.exchange.kept_epochs import kept_epochs
from trainer.models.adapter_header import FAMILY_NAMES, read_adapter_header
from trainer.models.base import LoadedBase, load_base
from trainer.models.methods.applying import AdapterChange, Change, FileChange, ModelChange, WordChange
from trainer.models.methods.starting_files import read_start
from trainer.models.methods.trained import Trained, Weights
from trainer.protocol.sampling import SampledBase, SampledFile, SampledJob, SampledModel, SamplingSpec
from trainer.protocol.settings import Method, MethodKind, Objective, Prediction, TaskKind
from trainer.protocol.spec import Spec, SpecError
from trainer.protocol.text import _
from trainer.training.checkpoints import Checkpoints, by_module, is_intact


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model of a sampling job, and where it lies; nothing of it is loaded yet."""

    label: str
    #: None: the base alone.
    change: Change | None = None
    #: The settings that it was trained with; None: the base, or a file from elsewhere.
    spec: Spec | None = None
    #: The family that a file from elsewhere is for, as `Family`; empty: not known, or trained here.
    family: str = ""
    #: What A1111 calls its file: `momo-000012`; empty: no adapter.
    file_name: str = ""


def find_models(spec: SamplingSpec, job_dir: Path) -> tuple[FoundModel, ...]:
    """Find every model of a sampling job.

    Raises:
        BadSpecError: One is missing, has no such epoch, was trained on another base, or is no adapter.
    """
    return tuple(_find(model, spec, job_dir) for model in spec.models)


def _find(model: SampledModel, spec: SamplingSpec, job_dir: Path) -> FoundModel:
    match model:
        case SampledBase():
            return FoundModel(label=model.label)
        case SampledFile():
            return _find_file(model, job_dir)
        case SampledJob():
            return _find_job(model, spec)


def _find_file(model: SampledFile, job_dir: Path) -> FoundModel:
    try:
        path = locate(job_dir, model.path)
    except FileNotFoundError:
        raise BadSpecError(
            _("The file {file} is not in the job's folder.", file=model.path), _("Upload it again.")
        ) from None
    facts = read_adapter_header(path)
    if facts.vectors:
        word = WordChange(
            method=Method(kind=MethodKind.TEXTUAL_INVERSION, vectors=facts.vectors),
            trigger=facts.trigger,
            weights=lambda trained: trained.weights_from(read_start(path)),
        )
        return FoundModel(label=model.label, change=word, family=facts.family)
    return FoundModel(label=model.label, change=FileChange(path=path), family=facts.family, file_name=path.stem)


def _find_job(model: SampledJob, sampling: SamplingSpec) -> FoundModel:
    # On a node of a cluster the folder may be elsewhere.
    job_dir = dataset_path(model.job_dir)
    try:
        spec, events = read_spec(job_dir), read_all_events(job_dir)
    except (SpecError, ValidationError, OSError) as error:
        raise BadSpecError(
            _("The training {label} cannot be read ({error}).", label=model.label, error=error),
            _("Its folder may have been deleted: train it again, or choose another job."),
        ) from error
    if spec.task is not TaskKind.DIFFUSION:
        raise BadSpecError(
            _("{label} is a classifier: it recognizes images and draws none.", label=model.label),
            _("Choose a job that trained an image model."),
        )
    if (spec.base.source, spec.base.revision) != (sampling.base.source, sampling.base.revision):
        raise BadSpecError(
            _(
                "{label} was trained on {theirs}, and these images are drawn with {ours}.",
                label=model.label,
                theirs=spec.base.source,
                ours=sampling.base.source,
            ),
            _("Draw with models of one base at a time."),
        )
    kept = kept_epochs(job_dir, events)
    epoch = kept.best if model.epoch is None else model.epoch
    if epoch is None or epoch not in kept.paths:
        raise BadSpecError(*kept.why_missing(model.label))
    path = kept.paths[epoch]
    # Those of the result are named after the job.
    own_name = path.stem if path.parent.name == "epochs" else spec.name
    return FoundModel(
        label=model.label,
        change=_change(spec, path, is_checkpoint=kept.is_checkpoint(epoch)),
        spec=spec,
        file_name=own_name if spec.method.kind.is_adapter else "",
    )


def _change(spec: Spec, path: Path, *, is_checkpoint: bool) -> Change:
    """Return what the weights at `path` change: a checkpoint's folder, or an exported file or folder."""

    def weights(trained: Trained) -> Weights:
        return _read_checkpoint(path) if is_checkpoint else trained.weights_from(read_start(path))

    match spec.method.kind:
        case MethodKind.FULL:
            return ModelChange(weights=lambda: _read_checkpoint(path) if is_checkpoint else _read_model(spec, path))
        case MethodKind.TEXTUAL_INVERSION:
            return WordChange(method=spec.method, trigger=spec.training.trigger, weights=weights)
        case _:
            return AdapterChange(method=spec.method, weights=weights)


def _read_checkpoint(path: Path) -> Mapping[str, Mapping[str, Tensor]]:
    """Read the weights of a checkpoint as they were validated.

    Raises:
        CheckpointError: It is damaged, or the training has just deleted it.
    """
    if not is_intact(path):
        raise CheckpointError(
            _("The checkpoint {name} is damaged, or was deleted at this moment.", name=path.name),
            _("Try it again, or choose another epoch."),
        )
    return by_module(Checkpoints(path.parent.parent).load_evaluated(path))


def _read_model(spec: Spec, path: Path) -> Weights:
    """Read the weights of an exported whole model, memory-mapped."""
    changes = {"source": str(path), "revision": None, "config": None, "vae": None}
    model: LoadedBase = load_base(spec.base.model_copy(update=changes), spec.objective, as_stored=True)
    modules = {model.denoiser_name: model.denoiser, **(model.clip_encoders if spec.method.text_encoder else {})}
    return {
        name: {own: parameter.data for own, parameter in module.named_parameters()} for name, module in modules.items()
    }


def objective_of(spec: SamplingSpec, models: Sequence[FoundModel]) -> Objective:
    """Return how predictions are read: as the jobs were trained.

    Raises:
        BadSpecError: They were trained to predict different things.
    """
    found = {
        (model.spec.objective.prediction, model.spec.objective.zero_terminal_snr): model
        for model in models
        if model.spec is not None
    }
    if len(found) > 1:
        first, second, *_others = found.values()
        raise BadSpecError(
            _(
                "{first} and {second} were trained with different predictions or noise schedules, and cannot share a "
                "grid.",
                first=first.label,
                second=second.label,
            ),
            _("Sample them one after the other."),
        )
    prediction, zero_terminal_snr = next(iter(found), (Prediction.AUTO, False))
    if prediction is Prediction.AUTO:
        prediction = spec.prediction
    return Objective(prediction=prediction, zero_terminal_snr=zero_terminal_snr)


def check_families(models: Sequence[FoundModel], base: LoadedBase) -> None:
    """Check that the files from elsewhere are for the base's family.

    Raises:
        BadSpecError: One is for another.
    """
    for model in models:
        if model.family and model.family != base.family.value:
            raise BadSpecError(
                _(
                    "{label} is for {theirs}, and this base is {ours}.",
                    label=model.label,
                    theirs=FAMILY_NAMES[model.family],
                    ours=FAMILY_NAMES[base.family.value],
                ),
                _("Choose the base that it was trained on, or one of the same family."),
            )
