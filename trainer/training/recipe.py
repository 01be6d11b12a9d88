"""The training, top to bottom, in the order in which things happen.

    python -m trainer run JOB_DIR

prepare -> load -> cache -> stages of epochs (train, validate, sample, keep, maybe stop) -> test -> export -> last word.
It drives a task (`tasks/task.py`) and does not know which. One step stands in `step.py`, what happens at the end of an
epoch in `epoch_end.py`, the end of the job in `finale.py`.
"""

from __future__ import annotations

import logging
import os
from math import ceil
from pathlib import Path

import torch

from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.mixing import Mixture, read_mixture
from trainer.device import (
    choose_precision,
    describe,
    is_device_lost,
    is_out_of_memory,
    make_accelerator,
    require_its_gpus,
)
from trainer.errors import (
    BadSpecError,
    CheckpointError,
    DeviceLostError,
    DiskFullError,
    FencedError,
    OutOfMemoryError,
    TrainerError,
    first_line,
    is_disk_full,
)
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    Failed,
    Phase,
    StageBegan,
    Started,
    Stopped,
)
from trainer.protocol.order import NEEDS_GPU_VARIABLE
from trainer.protocol.report import Split
from trainer.protocol.settings import Precision
from trainer.protocol.spec import Spec, SpecError, read_spec
from trainer.reporter import Reporter
from trainer.tasks.making import make_task
from trainer.training.checkpoints import Checkpoints, TrainingState
from trainer.training.data import draw_augmentation, say_warnings, write_seen
from trainer.training.ema import Ema
from trainer.training.epoch_end import end_epoch, measure_base, measure_between, say_pending
from trainer.training.finale import export_and_finish
from trainer.training.fitting import (
    MIN_TRIAL_WEIGHTS,
    Fit,
    Trial,
    find_micro_batch,
    find_precision,
    keep_fit,
    read_fit,
    remembered,
)
from trainer.training.optimizers import check_arguments
from trainer.training.processes import Processes
from trainer.training.progress import EpochProgress
from trainer.training.schedules import check_schedule_arguments, check_warmup
from trainer.training.session import Session
from trainer.training.stages import check_patterns, trained_parts
from trainer.training.start import Start
from trainer.training.step import take_step, try_step
from trainer.training.stop import StopRequest, StopRequestedError

log = logging.getLogger(__name__)


def train(reporter: Reporter, stop: StopRequest, start: Start) -> int:
    """The whole job of the reporter's folder; the exit status tells the last word, which is always said.

    Raises:
        FencedError: the job belongs to another attempt; no last word was said.
    """
    try:
        session = prepare_session(reporter, stop, start)
        _train_epochs(session)
        export_and_finish(session)
    except StopRequestedError:
        return _say_stopped(reporter)
    except FencedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes the last word
        return _say_failed(reporter, error)
    return EXIT_FINISHED


def prepare_session(reporter: Reporter, stop: StopRequest, start: Start) -> Session:
    """Read, load, cache, and go back to the last checkpoint."""
    job_dir = reporter.job_dir
    stop.check()
    spec, mixture = _read(job_dir)
    if os.environ.get(NEEDS_GPU_VARIABLE):
        require_its_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    precision = choose_precision(spec.training.precision)
    accelerator = make_accelerator(precision, tf32=spec.training.tf32)
    torch.manual_seed(derive_seed("init", spec.training.seed))
    task = make_task(spec, mixture, accelerator.device)
    session = Session(
        job_dir=job_dir,
        spec=spec,
        reporter=reporter,
        stop=stop,
        accelerator=accelerator,
        processes=Processes(accelerator),
        task=task,
        checkpoints=Checkpoints(job_dir),
        fit=Fit(precision=precision, micro_batch_size=1),
        start=start,
    )
    _check_processes(session)
    stop.is_shared = session.processes.count > 1
    check_patterns(task.trained, session.stages)
    stop.check()
    latest = session.checkpoints.latest()
    if latest is None:
        say_warnings(session)
    _encode(session)
    _fit(session)
    if spec.training.ema_decay is not None:
        session.ema = Ema(dict(task.trained.named_parameters()), decay=spec.training.ema_decay)
    if latest is not None:
        session.load_checkpoint(latest)
    session.state = session.state.model_copy(update={"parts": max(session.state.parts, _least_parts(session))})
    for stage in session.stages:
        check_warmup(session.warmup_steps(stage), stage.settings.epochs * session.steps_per_epoch(stage))
    session.begin_stage()
    _say_started(session)
    say_pending(session)
    return session


def _read(job_dir: Path) -> tuple[Spec, Mixture]:
    """What is wrong with the settings is said here, before anything large is loaded."""
    try:
        spec = read_spec(job_dir)
    except SpecError as error:
        raise BadSpecError(str(error), "Mend spec.json, or write a new one with `python -m trainer new`.") from error
    for stage in spec.plan:
        assert stage.optimizer is not None
        assert stage.schedule is not None
        check_arguments(stage.optimizer, stage.optimizer_arguments or {})
        rate = stage.learning_rate or 0.0
        check_schedule_arguments(stage.schedule, stage.schedule_arguments or {}, learning_rate=rate)
    return spec, read_mixture(spec)


def _check_processes(session: Session) -> None:
    """Raises: BadSpecError: fewer (or more) processes share the training than were asked for."""
    wanted, found = session.start.processes, session.processes.count
    if wanted is not None and wanted != found:
        raise BadSpecError(
            f"{wanted} processes were to share this training, and there are {found}.",
            "Start it with `accelerate launch --multi_gpu --num_processes N` on a machine with N GPUs, or ask for one.",
        )


def _least_parts(session: Session) -> int:
    """Into how many parts each micro-batch goes, so that no more pictures are in memory than this start may have.

    The micro-batches themselves stay as they were found: they lay out the epochs, and so what is learnt (ADR 0009).
    """
    most = session.start.micro_batch
    return 1 if most is None else ceil(session.fit.micro_batch_size / most)


def _encode(session: Session) -> None:
    """All pictures at all resolutions; the main process fills the cache, the others read it."""
    session.begin(Phase.CACHING)
    task = session.task
    with session.accelerator.main_process_first():
        session.examples = task.encode(task.resolution, lambda *_: session.check())
        session.train_at = {task.resolution: session.examples[Split.TRAIN]}
        for resolution in {session.resolution_of(stage) for stage in session.stages} - {task.resolution}:
            session.train_at[resolution] = task.encode(resolution, lambda *_: session.check())[Split.TRAIN]


def _fit(session: Session) -> None:
    """Find precision and micro-batch, or read what an earlier run found, and bring the model to the device."""
    task, training = session.task, session.spec.training
    fit = session.processes.agree(read_fit(session.job_dir))
    if fit is None:
        task.place(session.fit.precision)
        trial = Trial(run=lambda pictures, bf16: try_step(session, pictures, in_bf16=bf16), device=task.device)
        precision = _find_precision(session, trial)
        task.place(precision)
        sizes = [size for train in session.train_at.values() for size in train.sizes]
        largest = max(map(sizes.count, set(sizes)), default=1) * training.repeats
        if session.start.micro_batch is not None:
            largest = min(largest, session.start.micro_batch)
        micro_batch = find_micro_batch(training, task.weights, largest, trial)
        fit = session.processes.agree(Fit(precision=precision, micro_batch_size=micro_batch))
        if session.processes.is_main:
            keep_fit(session.job_dir, fit)
    session.fit = fit
    task.place(fit.precision)


def _find_precision(session: Session, trial: Trial) -> Precision:
    wanted, task = session.fit.precision, session.task
    if wanted is not Precision.AUTO or task.weights < MIN_TRIAL_WEIGHTS:
        return find_precision(wanted, task.weights, trial)
    what = (session.spec.base, session.spec.method, task.resolution)
    folder = session.mixture.sources[0].folder / "cache"
    return remembered(folder, what, lambda: find_precision(wanted, task.weights, trial))


def _say_started(session: Session) -> None:
    images = {split: len(examples.images) for split, examples in session.examples.items()}
    session.reporter.say(
        Started,
        pid=os.getpid(),
        device=describe(session.task.device),
        precision=session.fit.precision.value,
        epochs=session.spec.training.epochs,
        total_steps=session.total_steps,
        train_images=images[Split.TRAIN],
        validation_images=images[Split.VALIDATION],
        test_images=images[Split.TEST],
        resolution=session.task.resolution,
        trainable_parameters=sum(parameter.numel() for _, parameter in session.task.trained.named_parameters()),
        resumed_from_step=session.state.step,
        augmentation_sheet=draw_augmentation(session),
        data_words=write_seen(session),
        micro_batch_size=session.fit.micro_batch_size,
        batch_size=session.spec.training.batch_size,
        processes=session.processes.count,
    )


def _train_epochs(session: Session) -> None:
    """All epochs. A stop request leaves a checkpoint of the very step."""
    if session.start.is_finishing and session.state.step == 0:
        raise CheckpointError("There is nothing to keep: no step was trained yet.", "Let it train for an epoch.")
    measure_base(session)
    try:
        while not session.state.is_over:
            if session.start.is_finishing and session.state.position == 0:
                session.state = session.state.model_copy(update={"is_over": True})
                break
            if not session.start.is_finishing:
                _train_epoch(session)
            end_epoch(session)
    except StopRequestedError:
        if session.state.step > 0:
            session.save_checkpoint()
        raise


def _train_epoch(session: Session) -> None:
    """The steps of an epoch that are still to do."""
    state = session.state
    session.begin_stage()
    _say_stage(session)
    steps = session.views_of(state.epoch)
    session.begin(Phase.TRAINING)
    session.task.train_mode(True)
    progress = EpochProgress(session)
    every = session.spec.validation.every_steps
    try:
        for place in range(state.position, len(steps)):
            session.stop.check()
            number = state.step + place - state.position
            progress.add(take_step(session, steps[place], number), pictures=sum(map(len, steps[place])))
            if every is not None and (number + 1) % every == 0 and place + 1 < len(steps):
                progress.flush()
                measure_between(session, position=(place + 1) / len(steps))
                session.begin(Phase.TRAINING)
                session.task.train_mode(True)
    finally:
        progress.flush()


def _say_stage(session: Session) -> None:
    """Told where a stage begins or blocks join it."""
    stage, epoch = session.stage, session.state.epoch
    if not stage.begins_anew(epoch):
        return
    parts = tuple(trained_parts(session.task.trained))
    session.reporter.say(
        StageBegan,
        stage=stage.number,
        name=stage.settings.name,
        first_epoch=epoch,
        last_epoch=stage.last_epoch,
        learning_rate=stage.settings.learning_rate,
        optimizer=str(stage.settings.optimizer),
        schedule=str(stage.settings.schedule),
        resolution=session.resolution_of(stage),
        trainable_parameters=sum(part.trainable for part in parts),
        parts=parts,
    )


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
    try:
        reporter.say(Failed, kind=known.kind, message=known.message, hint=known.hint)
    except OSError as mute:
        log.error("the last word (%s) cannot be written: %s", known, mute)  # noqa: TRY400 - the cause is logged above
    return EXIT_FAILED


def explain(error: Exception) -> TrainerError:
    """What a person is told of an exception."""
    if isinstance(error, TrainerError):
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError(
            "The device ran out of memory.",
            "Take a smaller training.resolution, training.gradient_checkpointing, or a smaller method.rank.",
        )
    if is_device_lost(error):
        return DeviceLostError(
            f"A GPU of this training, or another process of it, is gone or broken ({first_line(error)}).",
            "It can go on from its last checkpoint. If this happens again, look at `nvidia-smi` and `dmesg` "
            "on that machine.",
        )
    if is_disk_full(error):
        return DiskFullError("The disk is full.", "Free some space and resume; the last checkpoint is whole.")
    return TrainerError(
        f"The trainer broke ({type(error).__name__}).", "This is a bug of ours; trainer.log has the details."
    )
