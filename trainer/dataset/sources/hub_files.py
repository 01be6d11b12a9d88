"""Downloads a public dataset of the Hugging Face hub as the files that it consists of, for another process to open.

No file is opened here, and no token is sent: the one who asks is a stranger to the hub. Images in the rows of tables
become files in a step of its own (`extract_rows`), which needs no network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import count
from pathlib import Path
from typing import Any

from trainer.console import Progress, ignore_progress
from trainer.dataset.captions.caption_text import clean_text
from trainer.dataset.input_files import (
    MARKDOWN_EXTENSION,
    Limits,
    RefusedError,
    SourceEntry,
    has_caption_name,
    has_image_name,
    is_os_clutter,
    unsafe_reason,
)
from trainer.dataset.sources.hf_datasets import HubName, gated, not_found
from trainer.dataset.sources.source_readers import Sources
from trainer.errors import DatasetError
from trainer.protocol import text
from trainer.protocol.hub import HubDatasetFacts
from trainer.protocol.progress import PreparePhase
from trainer.protocol.report import RefusalKind
from trainer.protocol.text import _, ngettext

#: Endings of what can hold images beside images.
_TABLES = (".parquet", ".arrow")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z")
_DOWNLOADS = 4
_TIMEOUT_S = 30
#: The table of the captions of images that were rows.
_ROW_TABLE = "darkroom-rows.jsonl"
#: Endings by the first bytes; a JPEG if none. The name only marks it as an image: the content decides.
_ENDINGS = {b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II": "tif", b"MM": "tif"}


def look_up(name: HubName, limits: Limits) -> HubDatasetFacts:
    """Ask the hub what a dataset consists of; at most `max_entries` files and `max_archive_bytes` are taken.

    Raises:
        DatasetError: The hub cannot be reached, or the dataset is missing, not public, too large or without images.
    """
    return _look_up(name, limits)[0]


def download(name: HubName, folder: Path, limits: Limits, progress: Progress) -> HubDatasetFacts:
    """Download the files of a dataset into a folder, by the names that they have on the hub.

    Raises:
        DatasetError: As `look_up`.
    """
    import huggingface_hub

    facts, files = _look_up(name, limits)

    def get(file: str) -> None:
        huggingface_hub.hf_hub_download(
            name.repository, file, repo_type="dataset", revision=facts.commit, local_dir=folder, token=False
        )

    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        started = [pool.submit(get, file) for file in files]
        for done, each in enumerate(as_completed(started), 1):
            try:
                each.result()
            except Exception as error:
                pool.shutdown(cancel_futures=True)
                raise not_found(name, error, may_have_token=False) from error
            progress(PreparePhase.DOWNLOADING, done, len(files))
    # Where the library notes what it has downloaded.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return facts


def _look_up(name: HubName, limits: Limits) -> tuple[HubDatasetFacts, list[str]]:
    # Transfers of another protocol, in memory that no limit of ours knows.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # The last line of standard error is the sentence that is shown.
    disable_progress_bars()
    try:
        info = huggingface_hub.HfApi(token=False).dataset_info(
            name.repository, revision=name.revision, files_metadata=True, timeout=_TIMEOUT_S
        )
    except Exception as error:
        raise not_found(name, error, may_have_token=False) from error
    if info.gated or info.private:
        raise gated(name, may_have_token=False)
    all_sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    sizes = {file: all_sizes[file] for file in _named([*all_sizes], name, info.card_data) if _is_taken(file)}
    facts = HubDatasetFacts(
        name=name.repository + (f"/{name.configuration}" if name.configuration else ""),
        commit=str(info.sha),
        files=len(sizes),
        bytes=sum(sizes.values()),
        license=_license(info.card_data),
        has_tables=any(_is_table(file) for file in sizes),
    )
    _require_usable(name, facts, list(sizes), limits)
    return facts, list(sizes)


def _named(files: Sequence[str], name: HubName, card: Any) -> Sequence[str]:
    """The files that a name means: of that configuration of the dataset's card, else below that folder, else all."""
    from fsspec.utils import glob_translate

    if name.configuration is None:
        return files
    configurations = getattr(card, "configs", None)
    known = [each for each in configurations if isinstance(each, dict)] if isinstance(configurations, list) else []
    of_name = (each for each in known if each.get("config_name") == name.configuration)
    found = next(of_name, {"data_dir": name.configuration})
    folder = str(found.get("data_dir") or "").strip("/")
    below = f"{folder}/" if folder else ""
    files = [file for file in files if file.startswith(below)]
    try:
        patterns = [re.compile(glob_translate(pattern)) for pattern in _patterns(found.get("data_files"))]
    except ValueError:
        # As if the card said nothing about files.
        return files
    if not patterns:
        return files
    return [file for file in files if any(each.match(file.removeprefix(below)) for each in patterns)]


def _patterns(data_files: Any) -> Iterator[str]:
    """The patterns in `data_files` of a configuration: one, several, or those of each split."""
    if isinstance(data_files, str):
        yield data_files
    elif isinstance(data_files, dict):
        yield from _patterns(data_files.get("path", list(data_files.values())))
    elif isinstance(data_files, list):
        for each in data_files:
            yield from _patterns(each)


def _is_taken(file: str) -> bool:
    """True for what a preparation uses: images, captions, tables and archives."""
    if unsafe_reason(file) is not None or any(is_os_clutter(part) for part in file.split("/")):
        return False
    if file.lower().endswith(MARKDOWN_EXTENSION):
        # The dataset's card.
        return False
    return has_image_name(file) or has_caption_name(file) or file.lower().endswith(_TABLES + _ARCHIVES)


def _license(card: Any) -> str:
    """The license of a dataset's card, which may name several."""
    found = getattr(card, "license", None) or ()
    names = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return clean_text(", ".join(str(name) for name in names))[:100]


def _require_usable(name: HubName, facts: HubDatasetFacts, files: Sequence[str], limits: Limits) -> None:
    if not any(has_image_name(file) or file.lower().endswith(_TABLES + _ARCHIVES) for file in files):
        raise DatasetError(_("{name} has no images.", name=name), _("Choose a dataset of images."))
    if facts.bytes > limits.max_archive_bytes:
        size, most = text.size(facts.bytes), text.size(limits.max_archive_bytes)
        message = _("{name} takes {size}; at most {most} are downloaded.", name=name, size=size, most=most)
        raise DatasetError(message, _("Give a part of it."))
    if facts.files > limits.max_entries:
        message = ngettext(
            "{name} has {n} file; at most {most} are downloaded.",
            "{name} has {n} files; at most {most} are downloaded.",
            facts.files,
            name=name,
            most=f"{limits.max_entries:,}",
        )
        raise DatasetError(message, _("Give a part of it."))


def extract_rows(folder: Path, limits: Limits, progress: Progress = ignore_progress) -> int:
    """Write the images in the Parquet and Arrow tables of a folder as files there, delete the tables, and return how
    many images they had.

    A row without a readable image becomes an empty file, and a damaged table stays: the preparation reports both.
    Captions and classes go into one table beside the files.

    Raises:
        DatasetError: They are more, or larger, than the limits say.
    """
    folder = folder.resolve()
    tables = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if _is_table(path.name)}
    left = limits.max_archive_bytes
    with Sources([folder], limits) as opened, (folder / _ROW_TABLE).open("w", encoding="utf-8") as captions:
        if any(each.kind is RefusalKind.TOO_MANY for each in opened.refused):
            raise _too_large(folder.name, limits)
        rows = [(entry, entry.row_labels) for entry in opened.entries if entry.row_labels is not None]
        for number, (entry, labels) in enumerate(rows, 1):
            data = _image_of(entry)
            left -= len(data)
            if number > limits.max_entries or left < 0:
                raise _too_large(folder.name, limits)
            file = _free_file(folder, f"row-{number:06}", data)
            file.write_bytes(data)
            line = {"file_name": file.name, "text": list(labels.captions), "label": labels.class_name}
            captions.write(json.dumps(line, ensure_ascii=False) + "\n")
            progress(PreparePhase.READING, number, len(rows))
        for entry in opened.entries:
            if entry.source in tables:
                _keep_table(folder, entry)
        damaged = {each.source for each in opened.refused}
    for name, path in tables.items():
        if not {name, folder.name} & damaged:
            path.unlink()
    if not rows:
        (folder / _ROW_TABLE).unlink()
    return len(rows)


def _is_table(name: str) -> bool:
    return name.lower().endswith(_TABLES)


def _too_large(name: str, limits: Limits) -> DatasetError:
    message = _(
        "{name} is too large: at most {n} images are taken, {most} together.",
        name=name,
        n=f"{limits.max_entries:,}",
        most=text.size(limits.max_archive_bytes),
    )
    return DatasetError(message, _("Give a part of it."))


def _image_of(entry: SourceEntry) -> bytes:
    try:
        return entry.read()
    except RefusedError:
        return b""


def _keep_table(folder: Path, entry: SourceEntry) -> None:
    """Write a Parquet table that only has captions as the lines of JSON that its reader makes of it."""
    try:
        lines = entry.read()
    except RefusedError:
        return
    path = folder / entry.path
    if path.resolve().is_relative_to(folder) and not path.exists():
        path.write_bytes(lines)


def _free_file(folder: Path, stem: str, data: bytes) -> Path:
    ending = next((ending for head, ending in _ENDINGS.items() if data.startswith(head)), "jpg")
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    return next(path for name in names if not (path := folder / f"{name}.{ending}").exists())
