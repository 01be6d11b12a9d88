"""The training, from top to bottom in the order of events.

    python -m trainer run JOB_DIR

prepare -> load -> cache -> stages of epochs (train, validate, sample, checkpoint, maybe stop) -> test -> export.
The recipe drives a task (`tasks/task.py`) and does not know which. A step is in `step.py`, the end of an epoch in
`epoch_end.py`, the end of the job in `finale.py`.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from trainer.dataset.images.decoding import UnreadableFilesError
from trainer.dataset.memory import keep_memory_between_steps, return_large_blocks
from trainer.dataset.seeds import derive_seed
from trainer.dataset.split.mixing import (
    Mixture,
    epoch_exposure,
    exposure_sentence,
    exposure_table,
    overlap_sentence,
    read_mixture,
    unreadable_sentences,
    without_files,
)
from trainer.device import (
    Processes,
    choose_precision,
    describe_device,
    free_memory_bytes,
    make_accelerator,
    require_assigned_gpus,
    total_memory_bytes,
)
from trainer.errors import (
    BadSpecError,
    CheckpointError,
    FencedError,
)
from trainer.exchange.files import write_text
from trainer.exchange.job_dir import read_spec
from trainer.models.quantization import check_quantization
from trainer.protocol.advice import doubtful_settings, idle_settings
from trainer.protocol.events import (
    EXIT_FINISHED,
    EXIT_STOPPED,
    Phase,
    StageBegan,
    Started,
    Stopped,
    Warned,
)
from trainer.protocol.report import Split
from trainer.protocol.run_options import NEEDS_GPU_VARIABLE, RunOptions
from trainer.protocol.settings import SplitKind
from trainer.protocol.spec import Spec, SpecError
from trainer.protocol.text import _, size
from trainer.protocol.training_settings import Precision
from trainer.reporter import Reporter
from trainer.tasks import make_task
from trainer.tasks.variant_preview import draw_preview
from trainer.training.averaging import Ema
from trainer.training.batch_size_finder import (
    DryRun,
    MemoryPlan,
    Trial,
    cached_result,
    check_fits,
    find_micro_batch,
    find_precision,
    is_memory_short,
    known_precision,
    read_memory_plan,
    write_memory_plan,
)
from trainer.training.checkpoints import Checkpoints, TrainingState, find_checkpoint
from trainer.training.epoch_end import emit_pending, end_epoch, measure_base, measure_between
from trainer.training.failures import emit_failed
from trainer.training.finale import export_and_finish
from trainer.training.fused_backward import check_machine
from trainer.training.optimizers import check_optimizer_arguments
from trainer.training.run import StopRequest, StopRequestedError, without_collection
from trainer.training.schedules import check_schedule_arguments, check_warmup
from trainer.training.session import Session
from trainer.training.stages import check_patterns, check_warmups, trained_parts
from trainer.training.step import EpochProgress, take_step

log = logging.getLogger(__name__)

#: Settings of `training` on which the memory of a step depends.
_STEP_MEMORY = {"gradient_checkpointing", "bf16_weights", "fused_backward", "compile"}


def train(reporter: Reporter, stop: StopRequest, options: RunOptions) -> int:
    """Run the whole job, emit its terminal event, and return the exit status.

    Raises:
        FencedError: The job belongs to another attempt; no terminal event was emitted.
    """
    try:
        session = prepare_session(reporter, stop, options)
        _train_epochs(session)
        export_and_finish(session)
    except StopRequestedError:
        return _emit_stopped(reporter)
    except FencedError:
        raise
    except Exception as error:  # noqa: BLE001 - every failure becomes a terminal event
        return emit_failed(reporter, error)
    return EXIT_FINISHED


# -- preparation ------------------------------------------------------------------------------------------------------


def prepare_session(reporter: Reporter, stop: StopRequest, options: RunOptions) -> Session:
    """Read the spec, load the model, encode the data, and restore the last checkpoint."""
    job_dir = reporter.job_dir
    stop.check()
    spec, mixture = _read(job_dir)
    checkpoints = Checkpoints(job_dir)
    latest = find_checkpoint(checkpoints, spec, reporter)
    if os.environ.get(NEEDS_GPU_VARIABLE):
        require_assigned_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    is_half = spec.base.quantization is not None or spec.training.bf16_weights
    precision = choose_precision(spec.training.precision, is_half=is_half)
    accelerator = make_accelerator(precision, tf32=spec.training.tf32)
    torch.manual_seed(derive_seed("init", spec.training.seed))
    with without_collection():
        task = make_task(spec, mixture, accelerator.device)
    session = Session(
        job_dir=job_dir,
        spec=spec,
        reporter=reporter,
        stop=stop,
        accelerator=accelerator,
        processes=Processes(accelerator),
        task=task,
        checkpoints=checkpoints,
        memory_plan=MemoryPlan(precision=precision, micro_batch_size=1),
        options=options,
        state=TrainingState(spec=spec.model_dump(mode="json")),
    )
    _check_processes(options.gpus, session.processes, spec)
    stop.is_shared = session.processes.count > 1
    check_patterns(task.trained, session.stages)
    stop.check()
    if read_memory_plan(job_dir) is None:
        check_fits(task, spec, precision, total_memory_bytes(task.device))
    if latest is None:
        session.load_start()
        _warn_about_settings(spec, mixture, reporter)
    _encode(session)
    _plan_memory(session)
    if spec.training.ema_decay is not None:
        session.ema = Ema(dict(task.trained.named_parameters()), decay=spec.training.ema_decay)
    if latest is not None:
        session.load_checkpoint(latest)
    for stage in session.stages:
        if steps := session.steps_of(stage):
            check_warmup(session.warmup_steps(stage), steps)
    session.begin_stage()
    if latest is None and session.processes.is_main:
        checkpoints.begin(session.state.spec)
    _emit_started(session)
    emit_pending(session)
    return session


def _read(job_dir: Path) -> tuple[Spec, Mixture]:
    """Read the spec and the datasets' reports, and check the settings before anything large is loaded."""
    try:
        spec = read_spec(job_dir)
    except SpecError as error:
        raise BadSpecError(
            str(error), _("Correct spec.json, or write a new one with `python -m trainer new`.")
        ) from error
    for stage in spec.plan:
        assert stage.optimizer is not None
        assert stage.schedule is not None
        check_optimizer_arguments(stage.optimizer, stage.optimizer_arguments or {})
        rate = stage.learning_rate or 0.0
        check_schedule_arguments(stage.schedule, stage.schedule_arguments or {}, learning_rate=rate)
    if spec.base.quantization is not None:
        check_quantization(spec.base.quantization)
    mixture = read_mixture(spec)
    if not spec.prior.is_on:
        # Class images, which are counted once they are drawn, make an epoch longer.
        check_warmups(spec, mixture)
    return spec, mixture


def _check_processes(wanted: int, processes: Processes, spec: Spec) -> None:
    """Raise BadSpecError unless the launcher started as many processes as this start was given GPUs, and the job can be
    trained by them."""
    found = processes.count
    if spec.training.fused_backward:
        check_machine(processes)
    if wanted > 1 and wanted != found:
        raise BadSpecError(
            _("{wanted} processes should share this training, but there are {found}.", wanted=wanted, found=found),
            _(
                "Start it with `accelerate launch --multi_gpu --num_processes N` on a machine with N GPUs, "
                "or ask for one GPU."
            ),
        )


def _warn_about_settings(spec: Spec, mixture: Mixture, reporter: Reporter) -> None:
    """Warn about settings without effect, unusual settings, and images left out because of overlapping datasets."""
    # One of each kind, as each is a message.
    for kind, sentences in (("idle_setting", idle_settings(spec)), ("doubtful_setting", doubtful_settings(spec))):
        if message := " ".join(sentences):
            reporter.emit(Warned, kind=kind, message=message)
    model = spec.samples.similarity_model
    if model is not None and not Path(model).expanduser().is_dir():
        message = _(
            "There is no folder {model} (samples.similarity_model): similarity will not be measured at the end.",
            model=model,
        )
        reporter.emit(Warned, kind="no_similarity_model", message=message)
    if (overlap := overlap_sentence(mixture)) is not None:
        reporter.emit(Warned, kind="mix_overlap", message=overlap)


def _encode(session: Session) -> None:
    """Encode all images at all resolutions; rank 0 fills the cache, the other ranks read it."""
    session.begin_phase(Phase.CACHING)
    task = session.task

    def encode_all() -> None:
        session.examples = task.encode(task.resolution, session.count)
        session.train_by_resolution = {task.resolution: session.examples[Split.TRAIN]}
        for resolution in {session.resolution_of(stage) for stage in session.stages} - {task.resolution}:
            session.train_by_resolution[resolution] = task.encode(resolution, session.count)[Split.TRAIN]

    with session.accelerator.main_process_first():
        while True:
            try:
                encode_all()
                break
            except UnreadableFilesError as error:
                _leave_out(session, error)


def _leave_out(session: Session, error: UnreadableFilesError) -> None:
    """Go on without the images whose files cannot be read; raises if too few are left."""
    message = " ".join(unreadable_sentences(session.mixture, error))
    session.reporter.emit(Warned, kind="unreadable_image", message=message)
    is_validated = session.spec.split.kind is not SplitKind.ALL
    session.task.mixture = without_files(session.mixture, error, needs_validation=is_validated)


def _plan_memory(session: Session) -> None:
    """Find precision and micro-batch size, unless an earlier run did, and move the model to the device."""
    task, training = session.task, session.spec.training
    plan = session.processes.broadcast(read_memory_plan(session.job_dir))
    placed: Precision | None = None
    returns_memory = _returns_memory(session) if plan is None else plan.returns_memory
    if returns_memory:
        return_large_blocks()
    if plan is None:
        candidates = session.train_by_resolution.values()
        dry_run = DryRun(task, candidates)
        trial = Trial(run=dry_run.run, device=task.device)
        precision = _find_precision(session, trial)
        dry_run.release()
        task.place(precision)
        placed = precision
        sides = [each for train in candidates for each in train.sizes]
        largest = max(map(sides.count, set(sides)), default=1) * session.mixture.sources[0].repeats
        if session.options.micro_batch is not None:
            largest = min(largest, session.options.micro_batch)
        pixels = max(width * height for width, height in sides)
        key = (*_trained_key(session), precision, pixels, training.model_dump(include=_STEP_MEMORY))
        cached = partial(cached_result, _cache_of(session), "image-bytes", key, int)
        micro_batch = find_micro_batch(training, task.weights, largest, trial, cached)
        found = MemoryPlan(precision=precision, micro_batch_size=micro_batch, returns_memory=returns_memory)
        plan = session.processes.broadcast(found)
        if session.processes.is_main:
            write_memory_plan(session.job_dir, plan)
    session.memory_plan = plan
    if placed is not plan.precision:
        task.place(plan.precision)
    if task.device.type == "cpu" and not returns_memory:
        keep_memory_between_steps()


def _returns_memory(session: Session) -> bool:
    """Return whether there is so little memory that a training should be slower to take less; the user is warned."""
    free = free_memory_bytes(session.task.device)
    is_short = is_memory_short(session.task, session.spec, session.memory_plan.precision, free)
    if is_short:
        message = _(
            "Only {free} of memory is free on this machine. The training will use as little as it can, and may take "
            "twice as long. To avoid that, close other programs, or choose a smaller training.resolution.",
            free=size(free),
        )
        session.reporter.emit(Warned, kind="memory_short", message=message)
    return is_short


def _find_precision(session: Session, trial: Trial) -> Precision:
    wanted, task = session.memory_plan.precision, session.task
    if (known := known_precision(wanted, task.weights)) is not None:
        return known

    def find() -> Precision:
        task.place(Precision.FP32)
        return find_precision(wanted, task.weights, trial)

    return cached_result(_cache_of(session), "precision", _trained_key(session), Precision, find)


def _cache_of(session: Session) -> Path:
    return session.mixture.sources[0].folder / "cache"


def _trained_key(session: Session) -> tuple[object, ...]:
    """What is trained: other jobs with the same take steps of the same time and memory."""
    return session.spec.base, session.spec.method, session.task.resolution


def _emit_started(session: Session) -> None:
    images = {split: len(examples.images) for split, examples in session.examples.items()}
    session.reporter.emit(
        Started,
        pid=os.getpid(),
        device=describe_device(session.task.device),
        precision=session.memory_plan.precision.value,
        epochs=session.epochs,
        total_steps=session.total_steps,
        train_images=images[Split.TRAIN],
        validation_images=images[Split.VALIDATION],
        test_images=images[Split.TEST],
        resolution=session.task.resolution,
        trainable_parameters=sum(parameter.numel() for _name, parameter in session.task.trained.named_parameters()),
        resumed_from_step=session.state.step,
        augmentation_sheet=_draw_augmentation(session),
        data_summary=_write_exposure(session),
        micro_batch_size=session.micro_batch_size,
        batch_size=session.spec.training.batch_size,
        processes=session.processes.count,
    )


def _write_exposure(session: Session) -> str:
    """Write how often the images of each dataset are seen in the first stage (`data.json`, `data.md`).

    Returns the same as a sentence.
    """
    rows = epoch_exposure(session.mixture, session.repeats(session.stages[0]))
    if session.processes.is_main:
        content = [{**asdict(row), "per_image": row.per_image} for row in rows]
        write_text(session.job_dir / "data.json", json.dumps(content, indent=1) + "\n")
        write_text(session.job_dir / "data.md", exposure_table(rows))
    return exposure_sentence(rows)


def _draw_augmentation(session: Session) -> str | None:
    """Draw `charts/augmentation.png` unless it exists; return its path in the job folder, None without augmentation."""
    if not session.spec.augmentation.is_on:
        return None
    path = session.job_dir / "charts" / "augmentation.png"
    if session.processes.is_main and not path.exists():
        examples = session.examples[Split.TRAIN]
        shown = [index for index, member in enumerate(examples.members) if member.source == 0]
        draw_preview(
            session.mixture.sources[0].folder,
            [examples.images[index] for index in shown],
            [examples.sizes[index] for index in shown],
            session.spec.augmentation,
            session.spec.training.seed,
            path,
        )
    return str(path.relative_to(session.job_dir))


# -- epochs -----------------------------------------------------------------------------------------------------------


def _train_epochs(session: Session) -> None:
    """Train all epochs. On a stop request, save a checkpoint of the current step."""
    if session.options.finish and session.state.step == 0:
        raise CheckpointError(_("There is nothing to export: no step was trained yet."), _("Train for an epoch first."))
    measure_base(session)
    try:
        while not session.state.is_over:
            if session.options.finish and session.state.position == 0:
                session.state = session.state.model_copy(update={"is_over": True})
                # So that it may be extended.
                session.save_checkpoint()
                break
            if not session.options.finish:
                _train_epoch(session)
            end_epoch(session)
    except StopRequestedError:
        if session.state.step > 0:
            session.save_checkpoint()
        raise


def _train_epoch(session: Session) -> None:
    """Train the remaining steps of the current epoch."""
    state = session.state
    session.begin_stage()
    _emit_stage(session)
    steps = session.epoch_views(state.epoch)
    session.begin_phase(Phase.TRAINING)
    session.task.train_mode(True)
    progress = EpochProgress(session)
    every = session.spec.validation.every_steps
    try:
        for position in range(state.position, len(steps)):
            session.stop.check()
            number = state.step + position - state.position
            progress.add(take_step(session, steps[position], number), images=len(steps[position]))
            if every is not None and (number + 1) % every == 0 and position + 1 < len(steps):
                progress.flush()
                measure_between(session, position=(position + 1) / len(steps))
                session.begin_phase(Phase.TRAINING)
                session.task.train_mode(True)
    finally:
        progress.flush()


def _emit_stage(session: Session) -> None:
    """Emit `StageBegan` if this epoch starts a stage or unfreezes blocks."""
    stage, epoch = session.stage, session.state.epoch
    if not stage.starts_or_unfreezes_at(epoch):
        return
    parts = tuple(trained_parts(session.task.trained))
    session.reporter.emit(
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


# -- terminal events --------------------------------------------------------------------------------------------------


def _emit_stopped(reporter: Reporter) -> int:
    checkpoints = Checkpoints(reporter.job_dir)
    latest = checkpoints.latest()
    state = checkpoints.load_state(latest) if latest else TrainingState()
    reporter.emit(
        Stopped,
        epoch=state.epoch,
        step=state.step,
        checkpoint=str(latest.relative_to(reporter.job_dir)) if latest else None,
    )
    return EXIT_STOPPED
