"""The events of a trainer: one JSON object per line of `events.jsonl`.

`seq` rises by one over the whole life of a job folder, across all runs. Paths are relative to the job folder. The
terminal event of a run is `finished` (or `sampling_finished`), `stopped` or `failed`; without one the process died.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter

from trainer.protocol.frozen import Frozen, RelativePath

EVENTS_VERSION: Literal[1] = 1

#: A longer line is not an event; readers skip it, so that garbage costs no memory.
MAX_LINE_BYTES = 1024 * 1024

#: Exit status of `python -m trainer run`, by terminal event.
EXIT_FINISHED, EXIT_FAILED, EXIT_STOPPED = 0, 4, 5
#: Exit status of a command that refused its input or arguments: nothing was written.
EXIT_REFUSED = 3
#: Exit status of `run` if another trainer holds the job folder: no event was written, and the job is not affected.
EXIT_BUSY = 6
#: Exit status of `run` if a later attempt took the job over (`exchange/attempt.py`): no more events were written.
EXIT_FENCED = 7


class _Event(Frozen):
    # A diverged loss is infinite or nan, and is reported.
    model_config = ConfigDict(allow_inf_nan=True)

    #: Rises by one with each event of a job folder, from 1.
    seq: int = Field(ge=1)
    #: Seconds since the epoch, UTC.
    time: float
    #: Attempt that emitted it (`exchange/attempt.py`); 0 on the command line.
    attempt: int = Field(default=0, ge=0)


class Started(_Event):
    """The model is loaded and the data encoded; emitted once in each run, before it validates or trains."""

    type: Literal["started"] = "started"
    version: Literal[1] = EVENTS_VERSION
    pid: int
    device: str
    precision: str
    epochs: int
    #: Optimizer steps of the whole training.
    total_steps: int
    train_images: int
    validation_images: int
    test_images: int
    #: Side of the training resolution, px.
    resolution: int
    trainable_parameters: int
    #: Step of the checkpoint that this run resumes from; 0 for a new run.
    resumed_from_step: int = 0
    #: Originals beside their variants (PNG); None without augmentation.
    augmentation_sheet: RelativePath | None = None
    #: How often the images of each dataset are seen in an epoch, as a sentence; `data.md` has the table.
    data_summary: str = ""
    #: Images in memory at once on each device; gradient accumulation makes up the rest of `batch_size`.
    micro_batch_size: int = 0
    batch_size: int = 0
    #: Processes that share each step.
    processes: int = 1


class TrainedPart(Frozen):
    """Trainable weights of one block of the model."""

    #: Dotted name of the block: `unet.up_blocks.1`, `text_encoder`, `head`.
    name: str
    trainable: int
    #: All weights of the block, those of an adapter included.
    total: int


class StageBegan(_Event):
    """A stage begins, or unfreezes blocks: what is trained from here on, and how."""

    type: Literal["stage_began"] = "stage_began"
    #: From 1.
    stage: int
    name: str
    #: First and last epoch of the stage, counted over the whole training.
    first_epoch: int
    last_epoch: int
    learning_rate: float
    optimizer: str
    schedule: str
    resolution: int
    trainable_parameters: int
    parts: tuple[TrainedPart, ...]


class Phase(StrEnum):
    """Kind of work of a trainer."""

    LOADING = "loading"
    CACHING = "caching"
    VALIDATING = "validating"
    SAMPLING = "sampling"
    TRAINING = "training"
    TESTING = "testing"
    #: Looks for memorized images, for drift of other prompts, and for images that were never learned.
    DIAGNOSING = "diagnosing"
    EXPORTING = "exporting"


class PhaseBegan(_Event):
    """Another kind of work has begun."""

    type: Literal["phase_began"] = "phase_began"
    phase: Phase


class PhaseProgress(_Event):
    """How far the current phase is; emitted about once a second, and not stored by the bot."""

    type: Literal["phase_progress"] = "phase_progress"
    phase: Phase
    #: Parts that are done (images, files), and how many there are.
    done: int = Field(ge=0)
    total: int = Field(ge=1)


class KeepAlive(_Event):
    """Keep-alive during long work; emitted at most once a minute, and not stored by the bot.

    A trainer that emits no event of any kind for an hour counts as hung.
    """

    type: Literal["keep_alive"] = "keep_alive"


class StepDone(_Event):
    """Progress within an epoch; emitted about once a second, and at each epoch's last step."""

    type: Literal["step_done"] = "step_done"
    step: int
    epoch: int
    #: Mean training loss since the epoch began.
    loss: float
    learning_rate: float
    steps_per_s: float
    #: Estimated seconds to the end of the job, from validation and samples to test, diagnosis and export; None while
    #: unknown.
    eta_s: float | None
    #: Seconds trained so far, those of earlier attempts, validation and samples included.
    elapsed_s: float = 0.0
    #: Peak memory of the device (GPU) or of the process (CPU), bytes.
    peak_memory_bytes: int


class Sample(Frozen):
    """One image that the model drew."""

    path: RelativePath
    prompt: str
    seed: int


class Sampled(_Event):
    """Samples of an epoch, 0 for the base model; emitted before the `base_validated` or `epoch_ended` of that epoch."""

    type: Literal["sampled"] = "sampled"
    epoch: int
    samples: tuple[Sample, ...]
    #: All of them on one contact sheet.
    sheet: RelativePath


class BandLoss(Frozen):
    """Mean loss over one band of timesteps."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    first_timestep: int
    last_timestep: int
    loss: float
    #: Ratio to the base model's loss on the same triples; 1.0 for the base itself.
    ratio: float


class ValidationLoss(Frozen):
    """Loss on the validation triples of a split; not a number if the model's numbers overflowed."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    #: Plain mean squared error over all triples.
    loss: float
    #: Mean over the bands of (loss / base model's loss); early stopping decides by it.
    ratio: float
    bands: tuple[BandLoss, ...]
    #: The training objective (with its kind and weights) over all triples.
    training_loss: float | None = None
    #: Paired 95 % confidence interval of `ratio` over images; None if there are too few.
    ratio_low: float | None = None
    ratio_high: float | None = None


class BaseValidated(_Event):
    """Loss of the base model, before the first step."""

    type: Literal["base_validated"] = "base_validated"
    validation: ValidationLoss


class EpochEnded(_Event):
    """An epoch has ended, was validated, and is stored in a checkpoint."""

    type: Literal["epoch_ended"] = "epoch_ended"
    epoch: int
    step: int
    train_loss: float
    validation: ValidationLoss
    learning_rate: float
    seconds: float
    is_best: bool
    best_epoch: int
    #: Loss chart (PNG), redrawn each epoch.
    chart: RelativePath
    #: The ratio smoothed over epochs; early stopping decides by it.
    smoothed_ratio: float | None = None
    #: The same on training images; None if none are measured.
    train_validation: ValidationLoss | None = None
    #: Ratio on validation images over that on training images, minus 1: the extent of overfitting.
    gap: float | None = None
    #: More measures by name: `accuracy`, `f1`.
    metrics: dict[str, float] = Field(default_factory=dict)
    #: Number of its stage, from 1.
    stage: int = 1


class Validated(_Event):
    """A validation within an epoch, for the curve only; no decision depends on it."""

    type: Literal["validated"] = "validated"
    epoch: int
    step: int
    validation: ValidationLoss


class StoppedEarly(_Event):
    """Early stopping ends the training; `finished` follows."""

    type: Literal["stopped_early"] = "stopped_early"
    epoch: int
    best_epoch: int
    best_ratio: float
    #: One sentence: why.
    reason: str
    epochs_saved: int
    seconds_saved: float


class Tested(_Event):
    """The only evaluation on the test split, with the best checkpoint."""

    type: Literal["tested"] = "tested"
    #: The epoch of that checkpoint.
    epoch: int = 0
    test: ValidationLoss
    #: The base model's plain loss on the same triples.
    base_loss: float
    metrics: dict[str, float] = Field(default_factory=dict)
    #: Confusion matrix (PNG) of a classifier.
    chart: RelativePath | None = None


class ExportFormat(StrEnum):
    """Format of an exported file."""

    #: Folder or file that diffusers (or peft) loads.
    DIFFUSERS = "diffusers"
    #: One small file under kohya's and LyCORIS's names.
    KOHYA = "kohya"
    #: What the training added to each weight, in full (`….diff`), under kohya's names.
    DIFFERENCE = "difference"
    #: A learned word, for every program that supports textual inversion.
    EMBEDDING = "embedding"
    #: A whole model as one file in the original layout.
    CHECKPOINT = "checkpoint"
    #: A whole model as a folder that transformers loads.
    TRANSFORMERS = "transformers"


class Reader(StrEnum):
    """A program or library that loads exported files; the value is the name that users know."""

    A1111 = "A1111"
    FORGE = "Forge"
    COMFYUI = "ComfyUI"
    SD_CPP = "stable-diffusion.cpp"
    DIFFUSERS = "diffusers"
    PEFT = "peft"
    TRANSFORMERS = "transformers"
    SD_SCRIPTS = "kohya sd-scripts"
    LYCORIS = "LyCORIS"


class Exported(_Event):
    """A file for other programs was written; that of the best epoch was also loaded back and compared."""

    type: Literal["exported"] = "exported"
    format: ExportFormat
    path: RelativePath
    bytes: int
    sha256: str
    #: Largest difference between the predictions of the trained model and of the file loaded back; None: not compared.
    max_difference: float | None = None
    #: The programs that read the file exactly.
    readers: tuple[Reader, ...] = ()
    #: The modules of a pipeline that it changes, or a whole model has: `unet`, `transformer`, `text_encoder`, …
    modules: tuple[str, ...] = ()
    #: The new word's token in diffusers; empty if there is none.
    token: str = ""
    #: The epoch of a file beside the best one's; None: the best epoch.
    epoch: int | None = None


class Warned(_Event):
    """A problem that does not stop the run."""

    type: Literal["warned"] = "warned"
    kind: str
    message: str


class SamplingStarted(_Event):
    """The base is loaded, and what a sampling job needs was found; emitted once in each run."""

    type: Literal["sampling_started"] = "sampling_started"
    device: str
    precision: str
    #: Of the images, px.
    width: int
    height: int
    #: Images of the whole grid, and of these the ones that an earlier run drew.
    images: int
    already_drawn: int = 0
    #: True if the base was still loaded from the job before.
    was_warm: bool = False


class ImageDrawn(_Event):
    """One image of a sampling job is in its file."""

    type: Literal["image_drawn"] = "image_drawn"
    #: Its index in `SamplingSpec.cells`.
    cell: int = Field(ge=0)
    path: RelativePath


class SamplingSheet(Frozen):
    """A picture of the grid, or of a part of it."""

    path: RelativePath
    #: What it shows, in words.
    alt: str
    #: The prompt that it is of, as an index; None: of all.
    prompt: int | None = None


class SamplingFinished(_Event):
    """Terminal event: every image of a sampling job is drawn."""

    type: Literal["sampling_finished"] = "sampling_finished"
    images: int
    #: The grid; several if it is too large for one picture.
    sheets: tuple[SamplingSheet, ...]
    #: Of work, those of earlier runs not counted.
    seconds: float


class Finished(_Event):
    """Terminal event: the training has ended and its files are in `output/`."""

    type: Literal["finished"] = "finished"
    epochs: int
    best_epoch: int
    stopped_early: bool
    base_loss: float
    best_loss: float
    best_ratio: float
    seconds: float
    #: Base and best samples side by side; a classifier's confusion matrix.
    comparison: RelativePath
    comparison_alt: str
    #: Report with curves, samples and settings (HTML), and the same as one file, with its images in it.
    report: RelativePath | None = None
    shared_report: RelativePath | None = None


class Stopped(_Event):
    """Terminal event: stopped by SIGTERM. `checkpoint` resumes exactly; None if there was nothing to store yet."""

    type: Literal["stopped"] = "stopped"
    epoch: int
    step: int
    checkpoint: RelativePath | None


class FailureKind(StrEnum):
    """Why a run failed; the bot decides by it whether to retry."""

    BAD_SPEC = "bad_spec"
    BAD_DATASET = "bad_dataset"
    MISSING_MODEL = "missing_model"
    OUT_OF_MEMORY = "out_of_memory"
    #: The GPU fell off the bus, reported a memory error, or its context broke: another attempt may succeed.
    DEVICE_LOST = "device_lost"
    DIVERGED = "diverged"
    DISK_FULL = "disk_full"
    MISSING_LIBRARY = "missing_library"
    BAD_CHECKPOINT = "bad_checkpoint"
    BAD_EXPORT = "bad_export"
    BUG = "bug"


class Failed(_Event):
    """Terminal event: the run cannot continue. `message`: what happened and why; `hint`: what to do."""

    type: Literal["failed"] = "failed"
    kind: FailureKind
    message: str
    hint: str


Event = Annotated[
    Started
    | PhaseBegan
    | StageBegan
    | PhaseProgress
    | KeepAlive
    | StepDone
    | Validated
    | Sampled
    | BaseValidated
    | EpochEnded
    | StoppedEarly
    | Tested
    | Exported
    | Warned
    | SamplingStarted
    | ImageDrawn
    | SamplingFinished
    | Finished
    | Stopped
    | Failed,
    Field(discriminator="type"),
]
TerminalEvent = Finished | SamplingFinished | Stopped | Failed

_event: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """Return the event of one line.

    Raises:
        pydantic.ValidationError: The line is not an event of this version.
    """
    return _event.validate_json(line)


_E = TypeVar("_E", bound=_Event)


def all_of(events: Sequence[Event], kind: type[_E]) -> tuple[_E, ...]:
    """Return the events of one kind, in order."""
    return tuple(event for event in events if isinstance(event, kind))


def last_of(events: Sequence[Event], kind: type[_E]) -> _E | None:
    """Return the last event of one kind, None if there is none: a job that goes on after its end has several ends."""
    return next((event for event in reversed(events) if isinstance(event, kind)), None)
