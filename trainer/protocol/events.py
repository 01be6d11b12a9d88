"""What a trainer says: one JSON object a line in `events.jsonl`, each with `seq` and `time`, ending in one last word.

`seq` rises by one over the whole life of a job folder, resumed runs included. Paths are relative to the job folder.
The last word of a run is `finished`, `stopped` or `failed`; a file without one means that the process died.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

EVENTS_VERSION: Literal[1] = 1

#: A longer line is no event: readers pass over it, so that garbage costs no memory.
MAX_LINE_BYTES = 1024 * 1024

#: Exit status of `python -m trainer run`, by last word.
EXIT_FINISHED, EXIT_FAILED, EXIT_STOPPED = 0, 4, 5
#: Exit status of `python -m trainer prepare` (and of any call that cannot be understood): nothing was made.
EXIT_REFUSED = 3
#: Exit status of `run` where another trainer holds the job folder: nothing was said, nothing is wrong with the job.
EXIT_BUSY = 6
#: Exit status of `run` where a later attempt took the job over (`attempt.py`): nothing more was said.
EXIT_FENCED = 7


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Rises by one with each event of a job folder, from 1.
    seq: int = Field(ge=1)
    #: Seconds since the epoch, UTC.
    time: float
    #: Of the trainer that says it (`attempt.py`); 0 on the command line.
    attempt: int = Field(default=0, ge=0)


class Started(_Event):
    """The model is loaded, the data encoded, the plan known; said once in each run, before it validates or trains."""

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
    #: Step of the checkpoint that this run goes on from; 0 for a fresh one.
    resumed_from_step: int = 0
    #: Originals beside their variants (PNG); None without augmentation.
    augmentation_sheet: str | None = None
    #: How often the pictures of which dataset are seen in an epoch, as a sentence; `data.md` has the table.
    data_words: str = ""
    #: Pictures in memory at once, on each device; `batch_size` of a step comes by accumulation.
    micro_batch_size: int = 0
    batch_size: int = 0
    #: Processes that share each step.
    processes: int = 1


class TrainedPart(BaseModel):
    """What is trained of one part of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Dotted name of the block: `unet.up_blocks.1`, `text_encoder`, `head`.
    name: str
    trainable: int
    #: Weights of the block in all, those of an adapter counted.
    total: int


class StageBegan(_Event):
    """A stage begins, or blocks join it: what is trained from here on, and how."""

    type: Literal["stage_began"] = "stage_began"
    #: From 1.
    stage: int
    name: str
    #: The epoch of the whole training that it begins with, and the last one of the stage.
    first_epoch: int
    last_epoch: int
    learning_rate: float
    optimizer: str
    schedule: str
    resolution: int
    trainable_parameters: int
    parts: tuple[TrainedPart, ...]


class Phase(StrEnum):
    """What a trainer is busy with, between `started` and its last word."""

    LOADING = "loading"
    CACHING = "caching"
    VALIDATING = "validating"
    SAMPLING = "sampling"
    TRAINING = "training"
    TESTING = "testing"
    EXPORTING = "exporting"


class PhaseBegan(_Event):
    """A new kind of work has begun."""

    type: Literal["phase_began"] = "phase_began"
    phase: Phase


class Working(_Event):
    """Long work that has nothing else to tell goes on; said at most once a minute, and not kept.

    A trainer that says neither this nor anything else for an hour hangs.
    """

    type: Literal["working"] = "working"


class StepDone(_Event):
    """Progress within an epoch; said about once a second, and at each epoch's last step."""

    type: Literal["step_done"] = "step_done"
    step: int
    epoch: int
    #: Mean training loss since the epoch began.
    loss: float
    learning_rate: float
    steps_per_s: float
    #: Seconds to the end of the training at this pace, samples and validation included; None while unknown.
    eta_s: float | None
    #: Peak memory of the device (GPU) or of the process (CPU), bytes.
    peak_memory_bytes: int


class Sample(BaseModel):
    """One generated picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    prompt: str
    seed: int


class Sampled(_Event):
    """Sample pictures; epoch 0 is the base model. Said before the `base_validated` or `epoch_ended` they go with."""

    type: Literal["sampled"] = "sampled"
    epoch: int
    samples: tuple[Sample, ...]
    #: All of them on one contact sheet.
    sheet: str


class BandLoss(BaseModel):
    """Mean loss over one band of timesteps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_timestep: int
    last_timestep: int
    loss: float
    #: Loss over the base model's on the same triples; 1.0 for the base itself.
    ratio: float


class ValidationLoss(BaseModel):
    """Loss on the frozen triples of a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Plain mean squared error over all triples.
    loss: float
    #: Mean over the bands of (loss / base model's loss): what early stopping looks at.
    ratio: float
    bands: tuple[BandLoss, ...]
    #: The loss that is trained with (its kind, weights and all), over all triples.
    training_loss: float | None = None
    #: Paired 95 % confidence interval of `ratio`, over pictures; None where there are too few.
    ratio_low: float | None = None
    ratio_high: float | None = None


class BaseValidated(_Event):
    """The base model's loss, before the first step."""

    type: Literal["base_validated"] = "base_validated"
    validation: ValidationLoss


class EpochEnded(_Event):
    """An epoch is over, validated, and kept in a checkpoint."""

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
    chart: str
    #: The ratio that early stopping looks at, smoothed over epochs.
    smoothed_ratio: float | None = None
    #: The same triples on training pictures; None where none are measured.
    train_validation: ValidationLoss | None = None
    #: Ratio of the validation pictures over that of the training pictures, less 1: what was learnt by heart.
    gap: float | None = None
    #: Further measures by name: `accuracy`, `f1`.
    metrics: dict[str, float] = {}
    #: Stage that it belongs to, from 1.
    stage: int = 1


class Validated(_Event):
    """A validation between two epoch ends; nothing is decided by it."""

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
    """The one look at the test split, with the best checkpoint."""

    type: Literal["tested"] = "tested"
    test: ValidationLoss
    #: The base model's plain loss on the same triples.
    base_loss: float
    metrics: dict[str, float] = {}
    #: Confusion matrix (PNG) of a classifier.
    chart: str | None = None


class ExportFormat(StrEnum):
    """What a file is, and who reads it."""

    #: Folder or file that diffusers (or peft) loads.
    DIFFUSERS = "diffusers"
    #: One file under kohya's and LyCORIS's names: A1111, ComfyUI.
    KOHYA = "kohya"
    #: A learnt word, for every program that knows textual inversion.
    EMBEDDING = "embedding"
    #: A whole model as one file in the original layout: A1111, ComfyUI.
    CHECKPOINT = "checkpoint"
    #: A whole model as a folder that transformers loads.
    TRANSFORMERS = "transformers"


class Exported(_Event):
    """A file for other programs, loaded back and compared."""

    type: Literal["exported"] = "exported"
    format: ExportFormat
    path: str
    bytes: int
    sha256: str
    #: Largest difference of the noise prediction between the trained model and the file loaded back.
    max_difference: float


class Warned(_Event):
    """Something that a person should know and that does not stop the run."""

    type: Literal["warned"] = "warned"
    kind: str
    message: str


class Finished(_Event):
    """Last word: the training ended by itself and its files are in `output/`."""

    type: Literal["finished"] = "finished"
    epochs: int
    best_epoch: int
    stopped_early: bool
    base_loss: float
    best_loss: float
    best_ratio: float
    seconds: float
    #: Base and best samples side by side; a classifier's confusion matrix.
    comparison: str
    comparison_alt: str
    #: The whole story with curves, samples and settings (HTML).
    report: str | None = None


class Stopped(_Event):
    """Last word: told to stop (SIGTERM); `checkpoint` resumes exactly, None if there was nothing to keep yet."""

    type: Literal["stopped"] = "stopped"
    epoch: int
    step: int
    checkpoint: str | None


class FailureKind(StrEnum):
    """Why a run failed; what the bot retries depends on it."""

    BAD_SPEC = "bad_spec"
    BAD_DATASET = "bad_dataset"
    MISSING_MODEL = "missing_model"
    OUT_OF_MEMORY = "out_of_memory"
    #: The GPU fell off the bus, reported a memory error, or its context broke: another start may do.
    DEVICE_LOST = "device_lost"
    DIVERGED = "diverged"
    DISK_FULL = "disk_full"
    MISSING_LIBRARY = "missing_library"
    BAD_CHECKPOINT = "bad_checkpoint"
    BAD_EXPORT = "bad_export"
    BUG = "bug"


class Failed(_Event):
    """Last word: it cannot go on. `message` says what happened and why, `hint` what to do."""

    type: Literal["failed"] = "failed"
    kind: FailureKind
    message: str
    hint: str


Event = Annotated[
    Started
    | PhaseBegan
    | StageBegan
    | Working
    | StepDone
    | Validated
    | Sampled
    | BaseValidated
    | EpochEnded
    | StoppedEarly
    | Tested
    | Exported
    | Warned
    | Finished
    | Stopped
    | Failed,
    Field(discriminator="type"),
]
LastWord = Finished | Stopped | Failed

_event: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """The event of one line.

    Raises:
        pydantic.ValidationError: the line is not an event of this version.
    """
    return _event.validate_json(line)
