"""A dataset by its name on the Hugging Face hub: `hf://owner/name`, `hf://owner/name/configuration@revision`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.dataset.archives import RefusedError
from trainer.dataset.captions.caption_sources import clean
from trainer.dataset.limits import Limits
from trainer.dataset.sources.dataset_rows import Rows, datasets_library, splits_of
from trainer.errors import DatasetError

#: `Path` takes one of two slashes away.
_NAME = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?:@([\w./-]+))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class HubName:
    """What stands behind `hf://`."""

    repository: str
    configuration: str | None = None
    #: Branch, tag or commit.
    revision: str | None = None

    def __str__(self) -> str:
        middle = f"/{self.configuration}" if self.configuration else ""
        return f"hf://{self.repository}{middle}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A dataset as it was at one commit, downloaded."""

    commit: str
    splits: Mapping[str, Rows]
    #: Folders that hold the files which rows name.
    roots: tuple[Path, ...]


def is_hub_name(source: Path | str) -> bool:
    """True for `hf://…`, also where `Path` made `hf:/…` of it."""
    return str(source).startswith("hf:/")


def parse_name(source: Path | str) -> HubName:
    """The parts of a name.

    Raises:
        DatasetError: it is none.
    """
    match = _NAME.fullmatch(str(source))
    if match is None:
        raise DatasetError(
            f"{source} is no name of a dataset.", "Write it as hf://owner/name or hf://owner/name@revision."
        )
    return HubName(repository=match[1], configuration=match[2], revision=match[3])


def open_hub(name: HubName, limits: Limits, *, endpoint: str | None = None) -> HubDataset:
    """Look the dataset up, hold its size against the limits, and download it; no code of its repository is run.

    Raises:
        DatasetError: the hub cannot be reached, or the dataset is missing, gated, too large or without pictures.
    """
    if not limits.allow_downloads:
        raise DatasetError(f"{name} is not downloaded: downloading is switched off here.", "Hand in files instead.")
    datasets = datasets_library()
    commit, size = _look_up(name, endpoint)
    if size > limits.max_archive_bytes:
        most = limits.max_archive_bytes / 2**30
        raise DatasetError(
            f"{name} takes {size / 2**30:.1f} GiB; at most {most:.1f} are downloaded.", "Hand in a part."
        )
    try:
        loaded = datasets.load_dataset(name.repository, name.configuration, revision=commit)
    except Exception as error:
        raise _not_loaded(name, error) from error
    try:
        splits = splits_of(loaded)
    except RefusedError as refusal:
        raise DatasetError(f"{name} cannot be used: {refusal.reason}.", "Choose a dataset of pictures.") from refusal
    return HubDataset(commit=commit, splits=splits, roots=_caches(datasets))


def _look_up(name: HubName, endpoint: str | None) -> tuple[str, int]:
    """Commit and bytes of the dataset's files."""
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        info = api.dataset_info(name.repository, revision=name.revision, files_metadata=True, timeout=30)
    except Exception as error:
        raise _not_found(name, error) from error
    return str(info.sha), sum(file.size or 0 for file in info.siblings or ())


def _not_found(name: HubName, error: Exception) -> DatasetError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return DatasetError(
            f"{name} is gated: its owner wants to be asked first.",
            "Ask for access on its page on huggingface.co, then set HF_TOKEN to your token.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DatasetError(f"{name.repository} has no revision {name.revision}.", "Leave it out for the newest one.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    # The hub does not tell a stranger which of the two it is.
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        hint = "Check its name; for a private one, set HF_TOKEN to your token."
        return DatasetError(f"There is no dataset {name.repository} on the Hugging Face hub, or it is private.", hint)
    if isinstance(error, errors.HFValidationError):
        return DatasetError(f"{name} is no name of a dataset.", "Write it as hf://owner/name.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DatasetError(f"{name} cannot be downloaded: HF_HUB_OFFLINE is set.", "Unset it, or hand in files.")
    if isinstance(error, errors.HfHubHTTPError):
        return DatasetError(f"{name} cannot be downloaded: the Hugging Face hub answers {status}.", "Try again later.")
    return _unreachable(name, error)


def _unreachable(name: HubName, error: Exception) -> DatasetError:
    why = _first_line(error)
    return DatasetError(
        f"{name} cannot be downloaded: the Hugging Face hub cannot be reached ({why}).",
        "Check the connection, or hand in an exported folder of it.",
    )


def _not_loaded(name: HubName, error: Exception) -> DatasetError:
    message = str(error)
    if "Config name is missing" in message or "BuilderConfig" in message:
        return DatasetError(f"{name} has several configurations: {_first_line(error)}", f"Write {name}/CONFIGURATION.")
    if "script" in message.lower():
        return DatasetError(f"{name} is loaded by code of its own, which is not run.", "Export it to Parquet first.")
    return DatasetError(f"{name} cannot be loaded: {_first_line(error)}.", "Try another revision, or hand in files.")


def _first_line(error: Exception) -> str:
    return clean(str(error))[:300].rstrip(".") or type(error).__name__


def _caches(datasets: Any) -> tuple[Path, ...]:
    import huggingface_hub.constants

    return Path(str(datasets.config.HF_DATASETS_CACHE)), Path(huggingface_hub.constants.HF_HUB_CACHE)
