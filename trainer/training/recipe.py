"""The training, top to bottom, in the order in which things happen.

    python -m trainer run JOB_DIR

prepare -> load -> cache -> epochs (train, validate, sample, keep, maybe stop) -> test -> export -> last word.
What happens at the end of an epoch stands in `epoch_end.py`, the end of the job in `finale.py`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.optimization import get_scheduler

from trainer.dataset.mixing import Mixture, plan_repeats, read_mixture
from trainer.dataset.seeds import derive_seed
from trainer.device import choose_precision, describe, make_accelerator
from trainer.errors import (
    BadSpecError,
    CheckpointError,
    DiskFullError,
    OutOfMemoryError,
    TrainerError,
)
from trainer.models.lora import trainable_parameters
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    Failed,
    Phase,
    Started,
    Stopped,
)
from trainer.protocol.report import Split
from trainer.protocol.spec import Schedule, Spec, SpecError, read_spec
from trainer.reporter import Reporter
from trainer.tasks.diffusion import DiffusionTask
from trainer.tasks.examples import View
from trainer.training.checkpoints import Checkpoints, TrainingState
from trainer.training.data import draw_augmentation, say_warnings, write_seen
from trainer.training.epoch_end import end_epoch, measure_base, say_pending
from trainer.training.finale import export_and_finish
from trainer.training.progress import EpochProgress
from trainer.training.session import Session
from trainer.training.stop import StopRequest, StopRequestedError

log = logging.getLogger(__name__)


def train(reporter: Reporter, stop: StopRequest, *, finish: bool) -> int:
    """The whole job of the reporter's folder; the exit status tells the last word, which is always said."""
    try:
        session = prepare_session(reporter, stop, is_finishing=finish)
        _train_epochs(session)
        export_and_finish(session)
    except StopRequestedError:
        return _say_stopped(reporter)
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes the last word
        return _say_failed(reporter, error)
    return EXIT_FINISHED


def prepare_session(reporter: Reporter, stop: StopRequest, *, is_finishing: bool) -> Session:
    """Read, load, cache, and go back to the last checkpoint."""
    job_dir = reporter.job_dir
    stop.check()
    spec, mixture = _read(job_dir)
    accelerator = make_accelerator(choose_precision(spec.training.precision))
    torch.manual_seed(derive_seed("init", spec.training.seed))
    session = Session(
        job_dir=job_dir,
        spec=spec,
        mixture=mixture,
        repeats=plan_repeats(mixture, spec.training.seed),
        reporter=reporter,
        stop=stop,
        accelerator=accelerator,
        task=DiffusionTask(spec, mixture, accelerator),
        checkpoints=Checkpoints(job_dir),
        is_finishing=is_finishing,
    )
    stop.check()
    if session.checkpoints.latest() is None:
        say_warnings(session)
    session.begin(Phase.CACHING)
    session.examples = session.task.encode(lambda done, total: stop.check())
    session.task.place()
    _make_optimizer(session)
    if (latest := session.checkpoints.latest()) is not None:
        session.load_checkpoint(latest)
    _say_started(session)
    say_pending(session)
    return session


def _read(job_dir: Path) -> tuple[Spec, Mixture]:
    try:
        spec = read_spec(job_dir)
    except SpecError as error:
        raise BadSpecError(str(error), "Mend spec.json, or write a new one with `python -m trainer new`.") from error
    return spec, read_mixture(spec)


def _make_optimizer(session: Session) -> None:
    training = session.spec.training
    optimizer = torch.optim.AdamW(session.task.parameter_groups(), weight_decay=training.weight_decay)
    session.optimizer = session.accelerator.prepare_optimizer(optimizer)
    session.schedule = get_scheduler(
        "constant_with_warmup" if training.schedule is Schedule.CONSTANT else training.schedule.value,
        optimizer=optimizer,
        num_warmup_steps=round(training.warmup_share * session.total_steps),
        num_training_steps=session.total_steps,
    )


def _say_started(session: Session) -> None:
    images = {split: len(examples.images) for split, examples in session.examples.items()}
    trainable = trainable_parameters(*session.task.trained_models.values())
    session.reporter.say(
        Started,
        pid=os.getpid(),
        device=describe(session.task.device),
        precision=str(session.accelerator.mixed_precision).replace("no", "fp32"),
        epochs=session.spec.training.epochs,
        total_steps=session.total_steps,
        train_images=images[Split.TRAIN],
        validation_images=images[Split.VALIDATION],
        test_images=images[Split.TEST],
        resolution=session.task.resolution,
        trainable_parameters=sum(parameter.numel() for parameter in trainable),
        resumed_from_step=session.state.step,
        augmentation_sheet=draw_augmentation(session),
        data_words=write_seen(session),
    )


def _train_epochs(session: Session) -> None:
    """All epochs. A stop request leaves a checkpoint of the very step."""
    if session.is_finishing and session.state.step == 0:
        raise CheckpointError("There is nothing to keep: no step was trained yet.", "Let it train for an epoch.")
    measure_base(session)
    try:
        while not session.state.is_over:
            if session.is_finishing and session.state.position == 0:
                session.state = session.state.model_copy(update={"is_over": True})
                break
            if not session.is_finishing:
                _train_epoch(session)
            end_epoch(session)
    except StopRequestedError:
        if session.state.step > 0:
            session.save_checkpoint()
        raise


def _train_epoch(session: Session) -> None:
    """The steps of an epoch that are still to do."""
    state = session.state
    steps = session.views_of(state.epoch)
    session.begin(Phase.TRAINING)
    session.task.train_mode(True)
    progress = EpochProgress(session)
    try:
        for number, step in enumerate(steps[state.position :], state.step):
            session.stop.check()
            progress.add(take_step(session, step, number), pictures=sum(map(len, step)))
    finally:
        progress.flush()


def take_step(session: Session, step: Sequence[Sequence[View]], number: int) -> torch.Tensor:
    """One optimizer step, the `number`-th from 0; the sum of the loss over its pictures, on the device."""
    training = session.spec.training
    seed = derive_seed("step", training.seed, number)
    # Dropout layers draw from the global generators, all else from one of its own: both follow from the step alone.
    torch.manual_seed(seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    pictures = sum(map(len, step))
    loss_sum = torch.zeros((), device=session.task.device)
    for views in step:
        loss_B = session.task.train_loss(session.examples[Split.TRAIN], views, generator)
        session.accelerator.backward(loss_B.sum() / pictures)
        loss_sum += loss_B.detach().sum()
    session.accelerator.clip_grad_norm_(session.parameters, training.max_grad_norm)
    session.optimizer.step()
    session.schedule.step()
    session.optimizer.zero_grad()
    return loss_sum


def _say_stopped(reporter: Reporter) -> int:
    checkpoints = Checkpoints(reporter.job_dir)
    latest = checkpoints.latest()
    state = checkpoints.load_state(latest) if latest else TrainingState()
    reporter.say(
        Stopped,
        epoch=state.epoch,
        step=state.step,
        checkpoint=str(latest.relative_to(reporter.job_dir)) if latest else None,
    )
    return EXIT_STOPPED


def _say_failed(reporter: Reporter, error: Exception) -> int:
    log.exception("the run failed")
    known = explain(error)
    reporter.say(Failed, kind=known.kind, message=known.message, hint=known.hint)
    return EXIT_FAILED


def explain(error: Exception) -> TrainerError:
    """What a person is told of an exception."""
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return OutOfMemoryError(
            "The device ran out of memory.", "Take a smaller training.micro_batch_size or training.resolution."
        )
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError("The disk is full.", "Free some space and resume; the last checkpoint is whole.")
    return TrainerError(
        f"The trainer broke ({type(error).__name__}).", "This is a bug of ours; trainer.log has the details."
    )
