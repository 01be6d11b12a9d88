"""Settings: the tables of `config.toml` as frozen models (`bot.config_file` reads them), and their defaults."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from datetime import time
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import ConfigDict, Field, field_validator, model_validator

from bot.log import LogFormat, LogLevel
from trainer.protocol.frozen import Frozen
from trainer.protocol.settings import TINY
from trainer.protocol.text import _

_MIB = 1024 * 1024
_GIB = 1024**3
#: Variables of the bot's environment that every child process gets. A list of what is needed: a list of secrets would
#: never be complete.
_FOR_CHILDREN = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME"),
    *("PYTHON*", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD", "DARKROOM_LANGUAGE", "DARKROOM_TRAINER_*"),
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "MALLOC_*"),
    *("CUDA_*", "CUBLAS_*", "NVIDIA_*", "NCCL_*", "ROCR_*", "HIP_*", "HSA_*", "MIOPEN_*"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "ACCELERATE_*", "HF_HOME", "HF_HUB_CACHE"),
)
#: And those that only a process that may download models gets.
_FOR_DOWNLOADS = ("HF_*", "HUGGING*", "*_PROXY", "*_proxy", "SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_Snowflake = Annotated[int, Field(ge=1, le=2**63 - 1)]


class SettingsGroup(Frozen):
    """A table of `config.toml`; types are not converted."""

    model_config = ConfigDict(strict=True)


class DiscordSettings(SettingsGroup):
    """Servers, operators and the log channel."""

    #: Servers that get the commands; empty: every server that invites the bot.
    guild_ids: tuple[_Snowflake, ...] = ()
    #: Users who may operate the machine; empty: the managers of the server, if the bot serves only one.
    operator_ids: tuple[_Snowflake, ...] = ()
    #: Name of the environment variable that holds the bot's token.
    token_env: str = Field(default="DARKROOM_TOKEN", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    #: Channel for news about the machine (digest, disk, GPUs, restarts), and for what could not be posted in its own
    #: channel if its owner takes no direct messages; 0: only logged.
    log_channel: int = Field(default=0, ge=0, le=2**63 - 1)


class AccessSettings(SettingsGroup):
    """Who may do what: IDs of roles, each enough. `/admin settings` replaces all of it for one server."""

    #: Who may train; empty: everyone. Managers of a server may do everything.
    train: tuple[_Snowflake, ...] = ()
    #: Who may draw with a model (`/sample`).
    sample: tuple[_Snowflake, ...] = ()
    #: Who may show results to the whole server.
    share: tuple[_Snowflake, ...] = ()
    #: Who may see and add datasets.
    datasets: tuple[_Snowflake, ...] = ()
    #: Who manages, in addition to those with Discord's permission Manage Server.
    manage: tuple[_Snowflake, ...] = ()
    #: Channels in which the bot works, and their threads; empty: all.
    channels: tuple[_Snowflake, ...] = ()
    #: Channel of the gallery; 0: a shared picture is posted where its owner shares it.
    gallery: int = Field(default=0, ge=0, le=2**63 - 1)


class StorageSettings(SettingsGroup):
    """Where the bot stores everything."""

    #: Database, datasets and jobs; on a local disk (SQLite's WAL and the locks need one).
    data_dir: Path = Path("data")


class LimitSettings(SettingsGroup):
    """What one member may ask for."""

    #: All uploaded files of one dataset together.
    max_dataset_mib: int = Field(default=200, ge=1, le=100_000)
    #: Files in one dataset, an archive counting as one.
    max_dataset_files: int = Field(default=50, ge=1, le=1000)
    #: Usable images that a training needs.
    min_images: int = Field(default=5, ge=1, le=10_000)
    #: Datasets of one person, and all their uploaded files together; also over several servers.
    max_datasets_per_user: int = Field(default=50, ge=1, le=100_000)
    max_stored_mib_per_user: int = Field(default=5000, ge=1, le=100_000_000)
    #: Requests of one person that wait for [Start training].
    max_drafts_per_user: int = Field(default=20, ge=1, le=1000)
    #: Jobs of one member that may wait at the same time.
    max_jobs_per_user: int = Field(default=3, ge=1, le=100)
    #: Epochs that one job may ask for.
    max_epochs: int = Field(default=100, ge=1, le=1000)
    #: Runs of one study.
    max_study_runs: int = Field(default=25, ge=2, le=64)
    #: Jobs of one member that may run at the same time; 0: any number.
    max_running_per_user: int = Field(default=0, ge=0, le=100)
    #: GPU hours of one member from Monday to Monday; 0: any number.
    gpu_hours_per_week: float = Field(default=0.0, ge=0, le=10_000)

    @property
    def max_dataset_bytes(self) -> int:
        return self.max_dataset_mib * _MIB

    @property
    def max_stored_bytes_per_user(self) -> int:
        return self.max_stored_mib_per_user * _MIB


class ModelSettings(SettingsGroup):
    """Base models that members may choose."""

    #: Label of the model that a request without one starts from; empty: the first that is not `tiny`.
    default: str = ""
    #: Label → folder in diffusers layout, `.safetensors` file, hub name, or `tiny` (a toy model for the demo, 64 px).
    sources: dict[str, str] = Field(default={"tiny": "tiny"}, min_length=1, max_length=25)
    #: Label → VAE in place of the model's own: a `.safetensors` file, a folder in diffusers layout, or a hub name.
    vaes: dict[str, str] = Field(default_factory=dict)

    @property
    def default_label(self) -> str | None:
        """Label of the default model; None: only the toy model is there, which is never chosen silently."""
        return self.default or next((label for label, source in self.sources.items() if source != TINY), None)

    def base_of(self, label: str) -> dict[str, str]:
        """The settings of a spec's base for a label."""
        vae = self.vaes.get(label)
        return {"source": self.sources[label], **({} if vae is None else {"vae": vae})}

    @model_validator(mode="after")
    def _labels_are_known(self) -> ModelSettings:
        known = ", ".join(self.sources)
        if self.default and self.default not in self.sources:
            raise ValueError(
                _("default is {name!r}, which is not among the sources ({known})", name=self.default, known=known)
            )
        for label in self.vaes.keys() - self.sources.keys():
            raise ValueError(_("vaes has {name!r}, which is not among the sources ({known})", name=label, known=known))
        return self


class QueueSettings(SettingsGroup):
    """How jobs run."""

    #: Trainings at the same time; 0: one for each GPU that is found (one on a CPU).
    slots: int = Field(default=0, ge=0, le=256)
    #: Datasets that are prepared at the same time; they do not wait for trainings.
    cpu_slots: int = Field(default=2, ge=1, le=64)
    #: Attempts of a job whose process is lost, the first one included.
    max_attempts: int = Field(default=3, ge=1, le=20)
    #: Pause between two polls of the running trainings.
    poll_s: float = Field(default=1.0, ge=0.05, le=60)
    #: Pause before a lost job is started again; doubled with each loss, up to 15 minutes.
    retry_pause_s: float = Field(default=30.0, ge=0, le=900)
    #: Time that a stopped training has to save its checkpoint before it is killed.
    stop_grace_s: float = Field(default=60.0, ge=1, le=3600)
    #: A training without events for this long is reported in the log and its channel, with when it will be killed.
    silence_s: float = Field(default=900.0, ge=10, le=86_400)
    #: A training whose process sends no heartbeat for this long is killed and continues from its checkpoint.
    heartbeat_timeout_s: float = Field(default=600.0, ge=30, le=86_400)
    #: A training without events for this long is killed although it sends heartbeats; four times as long while it
    #: loads its model, which may be a download; 0: never. Long work sends keep-alive events each minute, so only one
    #: micro-batch, or reading, hashing or writing one large file, must be shorter than this.
    hang_timeout_s: float = Field(default=3600.0, ge=0, le=604_800)

    @field_validator("hang_timeout_s")
    @classmethod
    def _leaves_time_for_work(cls, seconds: float) -> float:
        if 0 < seconds < 600:
            raise ValueError(
                _(
                    "{seconds} s would kill trainings that compile or read a model; set 0 (never), or 600 or more",
                    seconds=f"{seconds:g}",
                )
            )
        return seconds


class SamplingSettings(SettingsGroup):
    """Drawing with what was trained (`/sample`)."""

    #: Images of one request.
    max_images: int = Field(default=96, ge=1, le=256)
    #: Requests of one member that wait at the same time, and of a server.
    max_waiting_per_user: int = Field(default=3, ge=1, le=100)
    max_waiting: int = Field(default=20, ge=1, le=1000)
    #: Draw beside a training if no GPU is free, one request at a time; one that does not fit waits. Both are slower
    #: meanwhile. False: it waits until a GPU is free, and goes before the trainings that wait.
    beside_training: bool = False
    #: How long a process waits for the next request with the base model loaded; 0: not at all.
    keep_warm_s: float = Field(default=300.0, ge=0, le=86_400)
    #: A LoRA from elsewhere that a member brings.
    max_file_mib: int = Field(default=512, ge=1, le=8192)


class PrepareSettings(SettingsGroup):
    """Limits of the process that opens uploaded files."""

    timeout_s: float = Field(default=300.0, ge=1, le=86_400)
    #: Private memory of all its processes together, Linux only; as many images at once as it is enough for.
    memory_mib: int = Field(default=4096, ge=1024, le=1_000_000)
    #: The trainer's own limits by their names (`trainer/dataset/input_files.py`), which the trainer validates.
    limits: dict[str, bool | int | float] = Field(default_factory=dict)

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * _MIB


class CaptionSettings(SettingsGroup):
    """Captions that a model writes for images without one."""

    #: Folder or hub name of a captioning model; empty: none is offered.
    model: str = ""
    timeout_s: float = Field(default=1800.0, ge=1, le=86_400)


class CardSettings(SettingsGroup):
    """How often the live card of a job is edited."""

    #: Shortest time between two edits; a change of state is shown at once.
    edit_interval_s: float = Field(default=10.0, ge=1, le=600)
    #: The same for a card that is older than 55 minutes: Discord limits edits of messages older than an hour (30046).
    old_edit_interval_s: float = Field(default=60.0, ge=1, le=3600)
    #: Epochs that end within this time of the last message about one are posted together; 0: each by itself.
    epoch_interval_s: float = Field(default=20.0, ge=0, le=3600)


class AtClose(StrEnum):
    """What happens to a running training when its window closes."""

    #: It continues to its end.
    FINISH = "finish"
    #: It saves a checkpoint and continues in the next window.
    REQUEUE = "requeue"


class WindowSettings(SettingsGroup):
    """When trainings may start."""

    #: `mon-fri 20:00-08:00`, `sat,sun 00:00-24:00`; empty: always (`bot/queue/planning/windows.py` parses them).
    open: tuple[str, ...] = ()
    #: Time zone of these hours, of delayed starts, and of scheduled tasks.
    timezone: str = "UTC"
    at_close: AtClose = AtClose.FINISH

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise ValueError(
                _('"{name}" is not a time zone that this machine knows; write one such as "Europe/Berlin"', name=name)
            ) from None
        return name

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


class RetentionSettings(SettingsGroup):
    """Which files of ended jobs are deleted; pinned and shared jobs are always kept."""

    #: Checkpoints of jobs that ended longer ago than this are deleted, all their files after twice as long; 0: never.
    max_age_days: int = Field(default=0, ge=0, le=36_500)
    #: Space for the ended jobs of one member; 0: no limit. The oldest checkpoints are deleted first, then the oldest
    #: jobs.
    max_gib_per_person: float = Field(default=0.0, ge=0, le=1_000_000)
    #: Newest results of each member that are always kept.
    keep_newest: int = Field(default=3, ge=0, le=1000)
    #: Only log what would be deleted.
    dry_run: bool = False

    @property
    def max_bytes_per_person(self) -> int:
        return int(self.max_gib_per_person * _GIB)


class BackupSettings(SettingsGroup):
    """Nightly copies of the database."""

    #: Time of day in `windows.timezone`; empty: no copies.
    at: str = Field(default="04:00", pattern=r"^(([01]\d|2[0-3]):[0-5]\d)?$")
    #: Copies that are kept.
    keep: int = Field(default=7, ge=1, le=1000)
    #: Their folder; empty: `backups` in the data folder.
    folder: str = ""

    @property
    def clock(self) -> time | None:
        return time.fromisoformat(self.at) if self.at else None


class HealthSettings(SettingsGroup):
    """When the machine is too unhealthy for new trainings."""

    #: Free space in the data folder below which no training starts and no upload is taken; 0: no limit.
    min_free_gib: float = Field(default=10.0, ge=0, le=1_000_000)
    #: A GPU that is hotter than this gets no new training until it has cooled by 10 °C.
    max_temperature_c: int = Field(default=92, ge=40, le=150)
    #: Pause between two checks of the GPUs, each by a process of its own; 0: no checks.
    gpu_check_minutes: int = Field(default=10, ge=0, le=1440)

    @property
    def min_free_bytes(self) -> int:
        return int(self.min_free_gib * _GIB)


class LogSettings(SettingsGroup):
    """The log, on standard error."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.TEXT


class MetricsSettings(SettingsGroup):
    """Metrics for Prometheus."""

    #: Port of `/metrics`; 0: none.
    port: int = Field(default=0, ge=0, le=65_535)
    #: Metrics hold no images and no text of users, but are for this machine by default.
    host: str = "127.0.0.1"


class DatasetSettings(SettingsGroup):
    """Where images come from, other than from members."""

    #: Label → folder on this machine that those who manage a server may make datasets of; it is copied.
    folders: dict[str, Path] = Field(default_factory=dict, max_length=25)
    #: Those who manage a server may have public datasets of the Hugging Face hub downloaded.
    hub: bool = False


class WebSettings(SettingsGroup):
    """Pages for large uploads, results and datasets (docs/web.md)."""

    #: Port of the pages, on `host`, behind a reverse proxy or a tunnel; 0: none.
    port: int = Field(default=0, ge=0, le=65_535)
    host: str = "127.0.0.1"
    #: Address that members reach the pages at: `https://darkroom.example.org`.
    public_url: str = Field(default="", pattern=r"^(https?://[^\s/?#]+(/[^\s?#]*)?)?$")
    #: All files of one dataset that comes by the upload page; a role's `max_dataset_mib` applies too.
    max_upload_gib: float = Field(default=2.0, ge=0.001, le=1000)
    #: … and their number.
    max_upload_files: int = Field(default=2000, ge=1, le=20_000)
    #: A link ends so many days after it was made, and an upload so long after its last byte.
    link_days: int = Field(default=7, ge=1, le=365)

    @property
    def is_on(self) -> bool:
        return self.port != 0

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_gib * _GIB)

    @model_validator(mode="after")
    def _has_an_address(self) -> WebSettings:
        if self.port and not self.public_url:
            raise ValueError(
                _("port is set but public_url is not; set public_url to the address at which members reach the pages")
            )
        return self


class HubSettings(SettingsGroup):
    """Uploads to the Hugging Face hub."""

    #: User or organization whose models they become; empty: there are no uploads.
    namespace: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
    #: Name of the environment variable with a token that may write there; trainings do not get it.
    token_env: str = Field(default="DARKROOM_HUB_TOKEN", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")

    @property
    def is_on(self) -> bool:
        return bool(self.namespace and os.environ.get(self.token_env, "").strip())


class TrainerSettings(SettingsGroup):
    """How trainer processes are started."""

    #: Python that has the trainer's packages; empty: the bot's own.
    python: str = ""
    #: Keep one trainer ready with its libraries loaded, so that a job's first step comes seconds earlier.
    warm: bool = True
    #: Added to what trainer processes get of the bot's environment.
    env: dict[str, str] = Field(default_factory=dict)

    @property
    def command(self) -> tuple[str, ...]:
        return (self.python or sys.executable, "-m", "trainer")


class RaySettings(SettingsGroup):
    """Trainings on a Ray cluster instead of this machine (docs/scaling.md)."""

    #: URL of the head's dashboard, `http://head:8265`; empty: trainings run on this machine.
    address: str = Field(default="", pattern=r"^(https?://.+)?$")
    #: Name of the environment variable that holds the cluster's token; unset: the cluster needs none.
    token_env: str = Field(default="RAY_AUTH_TOKEN", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    #: Where the nodes see storage.data_dir; empty: under the same path.
    shared_root: str = ""
    #: Python of the nodes that has the trainer's packages.
    python: str = "python"
    #: Resources that a job requests from its node; GPUs apply if the job itself sets no number.
    gpus: int = Field(default=1, ge=0, le=64)
    cpus: int = Field(default=2, ge=1, le=1024)
    memory_mib: int = Field(default=8192, ge=0, le=10_000_000)
    #: How long the cluster may take to answer.
    timeout_s: float = Field(default=30.0, ge=1, le=600)


class Config(SettingsGroup):
    """All settings; `Config()` has the defaults."""

    discord: DiscordSettings = DiscordSettings()
    access: AccessSettings = AccessSettings()
    storage: StorageSettings = StorageSettings()
    limits: LimitSettings = LimitSettings()
    models: ModelSettings = ModelSettings()
    queue: QueueSettings = QueueSettings()
    sampling: SamplingSettings = SamplingSettings()
    prepare: PrepareSettings = PrepareSettings()
    datasets: DatasetSettings = DatasetSettings()
    captions: CaptionSettings = CaptionSettings()
    cards: CardSettings = CardSettings()
    windows: WindowSettings = WindowSettings()
    retention: RetentionSettings = RetentionSettings()
    backup: BackupSettings = BackupSettings()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    web: WebSettings = WebSettings()
    hub: HubSettings = HubSettings()
    trainer: TrainerSettings = TrainerSettings()
    ray: RaySettings = RaySettings()

    @property
    def backup_folder(self) -> Path:
        """Where backups go."""
        return Path(self.backup.folder) if self.backup.folder else self.storage.data_dir / "backups"

    def trainer_environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment of a trainer process: what it needs of the bot's, and `trainer.env`."""
        return self._chosen(environ, _FOR_CHILDREN + _FOR_DOWNLOADS) | self.trainer.env

    def confined_environment(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment of a process that opens strangers' files: without whatever downloads need."""
        given = {
            name: value
            for name, value in self.trainer.env.items()
            if _matches(name, _FOR_CHILDREN) or not _matches(name, _FOR_DOWNLOADS)
        }
        return self._chosen(environ, _FOR_CHILDREN) | given | {"HF_HUB_OFFLINE": "1"}

    def _chosen(self, environ: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
        secret = {self.discord.token_env, self.ray.token_env, self.hub.token_env}
        return {name: value for name, value in environ.items() if name not in secret and _matches(name, patterns)}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
