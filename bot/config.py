"""What somebody may want to change: `config.toml`, read once into frozen settings, every problem told at once.

The Discord token is no setting: it is read from the environment only, so that a config file can be shown to anybody.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bot.errors import ConfigError
from bot.log import LogFormat, LogLevel

_MIB = 1024 * 1024
_GIB = 1024**3
_Snowflake = Annotated[int, Field(ge=1, le=2**63 - 1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DiscordSettings(_Frozen):
    """Where the bot works."""

    #: Servers that get the commands; empty: every server that invites the bot.
    guild_ids: tuple[_Snowflake, ...] = ()
    #: People who may switch the whole machine; empty: who may manage the server, where the bot works in one only.
    operator_ids: tuple[_Snowflake, ...] = ()
    #: Name of the environment variable that holds the bot's token.
    token_env: str = Field(default="DARKROOM_TOKEN", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    #: Channel for news of no job: digest, disk, GPUs, restarts; 0: they are only logged.
    log_channel: int = Field(default=0, ge=0, le=2**63 - 1)


class StorageSettings(_Frozen):
    """Where the bot keeps everything."""

    #: Database, datasets and jobs; on a local disk (SQLite's WAL and the locks need one).
    data_dir: Path = Path("data")


class LimitSettings(_Frozen):
    """What one person may ask for."""

    #: All files of one dataset together, as handed in.
    max_dataset_mib: int = Field(default=200, ge=1, le=100_000)
    #: Files in one dataset, an archive counting as one.
    max_dataset_files: int = Field(default=50, ge=1, le=1000)
    #: Usable pictures that a training needs.
    min_images: int = Field(default=5, ge=1, le=10_000)
    #: Jobs of one person that may wait at the same time.
    max_jobs_per_user: int = Field(default=3, ge=1, le=100)
    #: Epochs that one job may ask for.
    max_epochs: int = Field(default=100, ge=1, le=1000)
    #: Jobs of one person that may run at the same time; 0: as many as there is room for.
    max_running_per_user: int = Field(default=0, ge=0, le=100)
    #: GPU hours of one person from Monday to Monday; 0: any number.
    gpu_hours_per_week: float = Field(default=0.0, ge=0, le=10_000)

    @property
    def max_dataset_bytes(self) -> int:
        return self.max_dataset_mib * _MIB


class ModelSettings(_Frozen):
    """Base models that people may choose."""

    #: Label of the model that is taken when nobody chooses.
    default: str = "tiny"
    #: Label → folder in diffusers layout, `.safetensors` file, hub name, or `tiny`.
    sources: dict[str, str] = Field(default={"tiny": "tiny"}, min_length=1, max_length=25)

    @model_validator(mode="after")
    def _default_is_known(self) -> ModelSettings:
        if self.default not in self.sources:
            raise ValueError(f"default is {self.default!r}, which is not among the sources ({', '.join(self.sources)})")
        return self

    @property
    def default_source(self) -> str:
        return self.sources[self.default]


class QueueSettings(_Frozen):
    """How jobs are run."""

    #: Trainings at the same time; 0: one for each GPU that is found (one on a CPU).
    slots: int = Field(default=0, ge=0, le=256)
    #: Datasets that are examined at the same time; trainings do not make them wait.
    cpu_slots: int = Field(default=2, ge=1, le=64)
    #: How often a job whose process is lost is started, the first time included.
    max_attempts: int = Field(default=3, ge=1, le=20)
    #: Pause between two looks at the running trainings.
    poll_s: float = Field(default=1.0, ge=0.05, le=60)
    #: Pause before a lost job is started again; doubled with each further loss, up to 15 minutes.
    retry_pause_s: float = Field(default=30.0, ge=0, le=900)
    #: Time that a stopped training has to save its checkpoint before it is killed.
    stop_grace_s: float = Field(default=60.0, ge=1, le=3600)
    #: A training that says nothing for this long is noted in the log, and told in the channel, with when it is ended.
    silence_s: float = Field(default=900.0, ge=10, le=86_400)
    #: A training whose process gives no sign of life for this long is killed and goes on from its checkpoint.
    heartbeat_timeout_s: float = Field(default=600.0, ge=30, le=86_400)
    #: A training that says nothing for this long although its process gives signs of life is ended as well; four times
    #: as long while it loads its model, which may be a download; 0: never. Work that takes long says each minute that
    #: it goes on, so what must be shorter than this is one micro-batch, or one large file read, hashed or written.
    hang_timeout_s: float = Field(default=3600.0, ge=0, le=604_800)

    @field_validator("hang_timeout_s")
    @classmethod
    def _work_has_time_to_speak(cls, seconds: float) -> float:
        if 0 < seconds < 600:
            raise ValueError(
                f"{seconds:g} s would end trainings that compile or read a model; give 0 (never), or 600 up"
            )
        return seconds


class PrepareSettings(_Frozen):
    """Limits of the process that opens what people hand in."""

    timeout_s: float = Field(default=300.0, ge=1, le=86_400)
    #: Private memory (RLIMIT_DATA), Linux only.
    memory_mib: int = Field(default=4096, ge=256, le=1_000_000)
    #: Limits of the trainer by their names there (`trainer/dataset/limits.py`), which checks them.
    limits: dict[str, bool | int | float] = {}

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * _MIB


class CaptionSettings(_Frozen):
    """Captions that a model writes for pictures that have none."""

    #: Folder or hub name of a captioning model; empty: nobody is offered any.
    model: str = ""
    timeout_s: float = Field(default=1800.0, ge=1, le=86_400)


class CardSettings(_Frozen):
    """How often the live card of a job is edited."""

    #: Shortest time between two edits; a change of state is shown at once.
    edit_interval_s: float = Field(default=10.0, ge=1, le=600)
    #: Age at which a card is sent anew: Discord limits edits of messages older than an hour (error 30046).
    roll_after_s: float = Field(default=3300.0, ge=60, le=3500)


class AtClose(StrEnum):
    """What becomes of a training that runs when its window closes."""

    #: It goes on to its end.
    FINISH = "finish"
    #: It saves its checkpoint and goes on in the next window.
    REQUEUE = "requeue"


class WindowSettings(_Frozen):
    """When trainings may start."""

    #: `mon-fri 20:00-08:00`, `sat,sun 00:00-24:00`; empty: always (`bot/queue/planning/windows.py` reads them).
    open: tuple[str, ...] = ()
    #: Of these hours, of delayed starts, and of the chores.
    timezone: str = "UTC"
    at_close: AtClose = AtClose.FINISH

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise ValueError(
                f'"{name}" is no time zone that this machine knows; write one such as "Europe/Berlin"'
            ) from None
        return name

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


class RetentionSettings(_Frozen):
    """Which files of ended jobs are deleted; pinned and shared jobs are kept whatever stands here."""

    #: Checkpoints of jobs that ended longer ago than this are deleted, all their files after twice as long; 0: never.
    max_age_days: int = Field(default=0, ge=0, le=36_500)
    #: What the ended jobs of one person may take; the oldest checkpoints go first, then the oldest jobs. 0: no limit.
    max_gib_per_person: float = Field(default=0.0, ge=0, le=1_000_000)
    #: Newest results of each person that are kept whatever the limits say.
    keep_newest: int = Field(default=3, ge=0, le=1000)
    #: Only say what would be deleted.
    dry_run: bool = False

    @property
    def max_bytes_per_person(self) -> int:
        return int(self.max_gib_per_person * _GIB)


class BackupSettings(_Frozen):
    """Nightly copies of the database."""

    #: Time of day in `windows.timezone`; empty: no copies.
    at: str = Field(default="04:00", pattern=r"^(([01]\d|2[0-3]):[0-5]\d)?$")
    #: Copies that are kept.
    keep: int = Field(default=7, ge=1, le=1000)
    #: Where they go; empty: `backups` in the data folder.
    folder: str = ""

    @property
    def clock(self) -> time | None:
        return time.fromisoformat(self.at) if self.at else None


class HealthSettings(_Frozen):
    """When the machine is too unwell for trainings."""

    #: Free room in the data folder below which nothing new starts; 0: whatever there is.
    min_free_gib: float = Field(default=10.0, ge=0, le=1_000_000)
    #: A GPU that is hotter than this gets no new training until it has cooled by 10 °C.
    max_temperature_c: int = Field(default=92, ge=40, le=150)
    #: Pause between two looks at the GPUs, each by a process of its own; 0: they are not looked at.
    gpu_check_minutes: int = Field(default=10, ge=0, le=1440)

    @property
    def min_free_bytes(self) -> int:
        return int(self.min_free_gib * _GIB)


class LogSettings(_Frozen):
    """What is logged, to standard error."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.TEXT


class MetricsSettings(_Frozen):
    """Numbers for Prometheus."""

    #: Port on which they can be fetched (`/metrics`); 0: none.
    port: int = Field(default=0, ge=0, le=65_535)
    #: They tell nobody's pictures or words, yet they are for this machine unless somebody says otherwise.
    host: str = "127.0.0.1"


class TrainerSettings(_Frozen):
    """How trainer processes are started."""

    #: Python that has the trainer's packages; empty: the bot's own.
    python: str = ""
    #: Keep one trainer ready, its libraries loaded, so that a job's first step comes seconds earlier.
    warm: bool = True
    #: Laid over the bot's environment (the token is always taken out).
    env: dict[str, str] = {}

    @property
    def command(self) -> tuple[str, ...]:
        return (self.python or sys.executable, "-m", "trainer")


class RaySettings(_Frozen):
    """Trainings on a Ray cluster instead of this machine (docs/scaling.md)."""

    #: Of the head's dashboard, `http://head:8265`; empty: trainings run on this machine.
    address: str = Field(default="", pattern=r"^(https?://.+)?$")
    #: Name of the environment variable that holds the cluster's token; unset: the cluster asks for none.
    token_env: str = Field(default="RAY_AUTH_TOKEN", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    #: Where the nodes see storage.data_dir; empty: under the same path. Not asked where there is a store.
    shared_root: str = ""
    #: Object store that job folders go through, as fsspec knows it; empty: the nodes see the data folder.
    store: str = ""
    #: Local folder of the nodes for jobs that go through the store; empty: the system's temporary folder.
    scratch_dir: str = ""
    #: Python of the nodes that has the trainer's packages.
    python: str = "python"
    #: What a job asks of its node; GPUs, where it does not say itself how many.
    gpus: int = Field(default=1, ge=0, le=64)
    cpus: int = Field(default=2, ge=1, le=1024)
    memory_mib: int = Field(default=8192, ge=0, le=10_000_000)
    #: How long the cluster may take to answer.
    timeout_s: float = Field(default=30.0, ge=1, le=600)


class Config(_Frozen):
    """All settings; `Config()` is the defaults."""

    discord: DiscordSettings = DiscordSettings()
    storage: StorageSettings = StorageSettings()
    limits: LimitSettings = LimitSettings()
    models: ModelSettings = ModelSettings()
    queue: QueueSettings = QueueSettings()
    prepare: PrepareSettings = PrepareSettings()
    captions: CaptionSettings = CaptionSettings()
    cards: CardSettings = CardSettings()
    windows: WindowSettings = WindowSettings()
    retention: RetentionSettings = RetentionSettings()
    backup: BackupSettings = BackupSettings()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    trainer: TrainerSettings = TrainerSettings()
    ray: RaySettings = RaySettings()

    def trainer_environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment of a trainer process: the bot's without its token, with `trainer.env` laid over it."""
        kept = {name: value for name, value in environ.items() if name != self.discord.token_env}
        return kept | self.trainer.env


def load_config(path: Path) -> Config:
    """The settings of a TOML file, defaults where it is silent.

    Raises:
        ConfigError: the file is missing, is not TOML, or holds anything unknown or out of range; it lists all of it.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            path=path, problems=["There is no such file. Copy config.example.toml and edit it."]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path=path, problems=[f"It cannot be read: {error}."]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path=path, problems=[f"It is not TOML: {error}."]) from error
    try:
        # As JSON: strict types, yet arrays become tuples and strings paths.
        return Config.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigError(path=path, problems=list(_sentences(error))) from error


def read_token(config: Config, environ: Mapping[str, str] = os.environ) -> str:
    """The bot's token, from the environment.

    Raises:
        ConfigError: the variable is not set.
    """
    name = config.discord.token_env
    if token := environ.get(name, "").strip():
        return token
    raise ConfigError(path=Path("The environment"), problems=[f"{name} is not set. Put the bot's token into it."])


def known_settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted name that a config file may hold: `queue.slots`, …"""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _sentences(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        context: dict[str, Any] = problem.get("ctx") or {}
        match problem["type"]:
            case "extra_forbidden" if name.rpartition(".")[2] == "token":
                yield f"{name} does not belong into a file. Put the token into the environment variable DARKROOM_TOKEN."
            case "extra_forbidden":
                yield f"{name} is not a setting{_nearest(name)}"
            case "greater_than_equal" | "less_than_equal":
                yield f"{name} is {problem['input']}; it must be {_bound(problem['type'], context)}."
            case "value_error":
                yield f"{name}: {context['error']}."
            case _:
                message = problem["msg"].removeprefix("Input ").replace("should be", "must be")
                yield f"{name} is {problem['input']!r}; it {message[:1].lower()}{message[1:]}."


def _bound(kind: str, context: Mapping[str, Any]) -> str:
    return f"{context['ge']:g} or more" if kind == "greater_than_equal" else f"{context['le']:g} or less"


def _nearest(name: str) -> str:
    groups = list(Config.model_fields)
    known = [*known_settings(), *groups] if "." in name else groups
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        # Right key, wrong group: the last part may still be known.
        near = [known for known in known_settings() if known.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f"; did you mean {near[0]}?" if near else "."
