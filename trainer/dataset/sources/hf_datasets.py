"""Hugging Face datasets: saved to a folder, exported as Parquet, or named on the hub (`hf://owner/name`).

Images are taken from the rows as encoded bytes. No code of a dataset is run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from trainer.dataset.archives.archive import refusal_for
from trainer.dataset.captions.caption_text import MAX_CLASS_CHARACTERS, clean_text
from trainer.dataset.captions.table_columns import (
    CAPTION_COLUMNS,
    CLASS_COLUMNS,
    JUDGED_ROWS,
    TAG_COLUMNS,
    TableError,
    captions_in,
    named_columns,
    text_column,
)
from trainer.dataset.input_files import Limits, RefusedError, RowLabels, SourceEntry, has_image_name
from trainer.errors import DatasetError
from trainer.protocol import text
from trainer.protocol.report import RefusalKind
from trainer.protocol.text import _

#: Columns of plain bytes that are taken for images.
_IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp", "bytes", "image_bytes")
#: Parquet is decompressed one row group at a time; writers of images put about 100 rows into one.
_MAX_ROW_GROUP_BYTES = 2 * 2**30
#: Rows of a table of captions that are read at once.
_BATCH_ROWS = 1000
#: `hf://owner/name/configuration@revision`; `Path` removes one of the two slashes.
_HUB_NAME = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?:@([\w./-]+))?", re.ASCII)


class NoImagesError(RefusedError):
    """A table without a column of images; it may have the captions of images beside it."""


@dataclass(frozen=True, kw_only=True)
class DatasetColumns:
    """The columns that are used."""

    image: str
    caption: str | None
    class_name: str | None
    #: The names for the numbers in a `ClassLabel` column.
    class_names: tuple[str, ...]
    #: The caption column was chosen by its content, as no name is well known.
    is_caption_by_content: bool = False
    #: Why there is no caption column, a clause for a sentence; empty if there is one, or nothing to choose from.
    problem: str = ""

    def used(self) -> list[str]:
        return [name for name in (self.image, self.caption, self.class_name) if name is not None]


class Rows(Protocol):
    """The rows of one split."""

    columns: DatasetColumns

    def __len__(self) -> int: ...

    def values(self, column: str, count: int) -> Sequence[object]:
        """The first `count` values of a column."""

    def cell(self, row: int) -> object:
        """The image of a row: bytes, or a mapping with `bytes` and `path`."""


def _import_datasets() -> Any:
    """Import `datasets` without its progress bars and telemetry; it takes a second, so only where it is needed."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.disable_progress_bars()
    return datasets


def is_saved(folder: Path) -> bool:
    """True for a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    is_dataset = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    return is_dataset or (folder / "dataset_dict.json").is_file()


def open_saved(folder: Path, caption_column: str = "") -> dict[str, Rows]:
    """Open the splits of a saved dataset; one without splits is named "".

    Args:
        folder: The dataset.
        caption_column: The column of the captions if a person chose it.

    Raises:
        RefusedError: It is damaged, or has no images.
    """
    datasets = _import_datasets()
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # untrusted JSON and Arrow can make it raise anything
        raise refusal_for(error) from error
    return splits_of(loaded, caption_column)


def splits_of(loaded: Any, caption_column: str = "") -> dict[str, Rows]:
    """The splits of a loaded `Dataset` or `DatasetDict`, with images left encoded.

    Raises:
        RefusedError: It has no images.
    """
    splits = loaded.items() if isinstance(loaded, dict) else [("", loaded)]
    return {name: _LoadedRows(dataset, caption_column) for name, dataset in splits}


class _LoadedRows:
    """The rows of a `datasets.Dataset`, which memory-maps its files."""

    def __init__(self, dataset: Any, caption_column: str) -> None:
        datasets = _import_datasets()
        self._dataset = dataset
        self.columns = find_columns(dataset.features, self.values, caption_column)
        if isinstance(dataset.features[self.columns.image], datasets.Image):
            dataset = dataset.cast_column(self.columns.image, datasets.Image(decode=False))
        self._dataset = dataset.select_columns(self.columns.used())

    def __len__(self) -> int:
        return len(self._dataset)

    def values(self, column: str, count: int) -> Sequence[object]:
        return list(self._dataset.select_columns([column])[:count][column])

    def cell(self, row: int) -> object:
        return self._dataset[row][self.columns.image]


class ParquetRows:
    """The rows of one Parquet file; close it after use.

    Raises:
        RefusedError: It is damaged, or has no images.
    """

    def __init__(self, path: Path, caption_column: str = "") -> None:
        import pyarrow.parquet

        self._cached_group: tuple[int, Any] = -1, None
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
            features = _import_datasets().Features.from_arrow_schema(self._file.schema_arrow)
        except Exception as error:  # untrusted Parquet can make it raise anything
            raise refusal_for(error) from error
        groups = [self._file.metadata.row_group(index) for index in range(self._file.num_row_groups)]
        if any(group.total_byte_size > _MAX_ROW_GROUP_BYTES for group in groups):
            reason = _("one of its row groups is larger than {size}", size=text.size(_MAX_ROW_GROUP_BYTES))
            raise RefusedError(RefusalKind.TOO_LARGE, reason)
        self._starts = [0]
        for group in groups:
            self._starts.append(self._starts[-1] + group.num_rows)
        try:
            self.columns = find_columns(features, self.values, caption_column)
        except RefusedError:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._starts[-1]

    def values(self, column: str, count: int) -> Sequence[object]:
        values: list[object] = []
        for index in range(self._file.num_row_groups):
            if len(values) >= count:
                break
            values += self._file.read_row_group(index, columns=[column]).column(column).to_pylist()
        return values[:count]

    def cell(self, row: int) -> object:
        index = next(i for i, (start, end) in enumerate(pairwise(self._starts)) if start <= row < end)
        if self._cached_group[0] != index:
            # Rows are read in order, so one group is enough. The old one is freed before the next is read.
            self._cached_group = -1, None
            self._cached_group = index, self._file.read_row_group(index, columns=[self.columns.image])
        cell: object = self._cached_group[1].column(self.columns.image)[row - self._starts[index]].as_py()
        return cell


def read_parquet_table(path: Path, limits: Limits) -> bytes:
    """The rows of a Parquet file without images as JSON lines: texts, numbers and lists of texts.

    Raises:
        RefusedError: It is damaged or too large.
    """
    import pyarrow.parquet

    lines: list[bytes] = []
    left = limits.max_table_bytes
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    kept = {name: value for name, value in row.items() if isinstance(value, str | int | list)}
                    lines.append(json.dumps(kept, ensure_ascii=False, default=str).encode() + b"\n")
                    left -= len(lines[-1])
                    if left < 0:
                        most = text.size(limits.max_table_bytes)
                        raise RefusedError(RefusalKind.TOO_LARGE, _("it is larger than {most}", most=most))
    except RefusedError:
        raise
    except Exception as error:  # as in `open_saved`
        raise refusal_for(error) from error
    return b"".join(lines)


def find_columns(
    features: Mapping[str, Any], values: Callable[[str, int], Sequence[object]], caption_column: str = ""
) -> DatasetColumns:
    """Find the columns of the image, its caption and its class, by type and by well-known names.

    Args:
        features: Types by column.
        values: Returns the first values of a column; of those without a well-known name, the only text is the caption.
        caption_column: The column of the captions if a person chose it.

    Raises:
        RefusedError: No column has images.
    """
    image = next((name for name, feature in features.items() if _is_image_column(name, feature)), None)
    if image is None:
        reason = _("none of its columns contains images ({columns})", columns=", ".join(features))
        raise NoImagesError(RefusalKind.UNSUPPORTED, reason[:300])
    names = {name.lower(): name for name in features if name != image}
    labeled = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    class_columns = [*labeled, *(names[name] for name in CLASS_COLUMNS if name in names)]
    class_column = next(iter(class_columns), None)
    found = DatasetColumns(
        image=image,
        caption=next((names[name] for name in CAPTION_COLUMNS + TAG_COLUMNS if name in names), None),
        class_name=class_column,
        class_names=tuple(getattr(features[class_column], "names", None) or ()) if class_column else (),
    )
    texts = [name for name in features if name not in (image, class_column) and _is_text_column(features[name])]
    try:
        if caption_column:
            return replace(
                found, caption=named_columns([name for name in features if name != image], caption_column)[0]
            )
        if found.caption is None:
            judged = {name: [value for value in values(name, JUDGED_ROWS) if value] for name in texts}
            column = text_column(judged, has_image_name) or None
            return replace(found, caption=column, is_caption_by_content=column is not None)
    except TableError as error:
        return replace(found, caption=None, problem=str(error))
    return found


def _is_text_column(feature: Any) -> bool:
    """True for a column of texts, or of lists of texts."""
    return getattr(getattr(feature, "feature", feature), "dtype", "") in ("string", "large_string")


def _is_image_column(name: str, feature: Any) -> bool:
    if type(feature).__name__ == "Image":
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    return name.lower() in _IMAGE_COLUMNS and getattr(feature, "dtype", "") in ("binary", "large_binary")


def row_entries(
    rows: Rows, *, label: str, part: str, scope: int, limits: Limits, roots: Sequence[Path]
) -> Iterator[SourceEntry]:
    """Yield an entry for each row; files that rows name are read only below `roots`."""
    count = min(len(rows), limits.max_entries)
    columns = rows.columns
    captions = rows.values(columns.caption, count) if columns.caption else [None] * count
    classes = rows.values(columns.class_name, count) if columns.class_name else [None] * count
    for row, (caption, class_value) in enumerate(zip(captions, classes, strict=True)):
        path = f"{part}/{row + 1}" if part else f"{row + 1}"
        yield SourceEntry(
            source=f"{label}!{path}",
            path=path,
            scope=scope,
            read=partial(_read, rows, row, limits.max_entry_bytes, roots),
            row_labels=RowLabels(
                captions=captions_in(caption), class_name=_class_name(class_value, columns.class_names)
            ),
        )


def _class_name(value: object, names: tuple[str, ...]) -> str:
    if isinstance(value, int) and names:
        return clean_text(names[value], MAX_CLASS_CHARACTERS) if 0 <= value < len(names) else ""
    return clean_text(str(value), MAX_CLASS_CHARACTERS) if isinstance(value, str | int) else ""


def _read(rows: Rows, row: int, limit_bytes: int, roots: Sequence[Path]) -> bytes:
    try:
        cell = rows.cell(row)
    except Exception as error:  # as in `open_saved`
        raise refusal_for(error) from error
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if data is None and isinstance(cell, dict) and isinstance(cell.get("path"), str):
        data = _read_file(cell["path"], limit_bytes, roots)
    if not isinstance(data, bytes):
        raise RefusedError(RefusalKind.DAMAGED, _("its row contains no image"))
    if len(data) > limit_bytes:
        raise RefusedError(RefusalKind.TOO_LARGE, _("it is larger than {most}", most=text.size(limit_bytes)))
    return data


def _read_file(name: str, limit_bytes: int, roots: Sequence[Path]) -> bytes:
    """Read a file that a row names. An untrusted row can name any file, so only files below `roots` are read."""
    for root in roots:
        path = (root / name).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            with path.open("rb") as file:
                return file.read(limit_bytes + 1)
    raise RefusedError(RefusalKind.UNSAFE_PATH, _("its row names a file that does not belong to the dataset"))


def _one_line(error: Exception) -> str:
    return clean_text(str(error))[:200].rstrip(".") or type(error).__name__


@dataclass(frozen=True, kw_only=True)
class HubName:
    """The parts of `hf://owner/name/configuration@revision`."""

    repository: str
    configuration: str | None = None
    #: Branch, tag or commit.
    revision: str | None = None

    def __str__(self) -> str:
        configuration = f"/{self.configuration}" if self.configuration else ""
        return f"hf://{self.repository}{configuration}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A downloaded dataset at one commit."""

    commit: str
    splits: Mapping[str, Rows]
    #: Folders of the files that rows name.
    roots: tuple[Path, ...]


def is_hub_name(source: Path | str) -> bool:
    """True for `hf://…`, and for the `hf:/…` that `Path` makes of it."""
    return str(source).startswith("hf:/")


def parse_name(source: Path | str) -> HubName:
    """Parse a hub name.

    Raises:
        DatasetError: It is not one.
    """
    match = _HUB_NAME.fullmatch(str(source))
    if match is None:
        raise DatasetError(
            _("{source} is not the name of a dataset.", source=source),
            _("Write it as hf://owner/name or hf://owner/name@revision."),
        )
    return HubName(repository=match[1], configuration=match[2], revision=match[3])


def open_hub(name: HubName, limits: Limits, *, caption_column: str = "", endpoint: str | None = None) -> HubDataset:
    """Look a dataset up on the hub, check its size, and download it.

    Raises:
        DatasetError: The hub cannot be reached, or the dataset is missing, gated, too large or without images.
    """
    if not limits.allow_downloads:
        raise DatasetError(
            _("{name} is not downloaded: downloads are switched off here.", name=name),
            _("Give files instead."),
        )
    datasets = _import_datasets()
    commit, size_bytes = _look_up(name, endpoint)
    if size_bytes > limits.max_archive_bytes:
        size, most = text.size(size_bytes), text.size(limits.max_archive_bytes)
        raise DatasetError(
            _("{name} takes {size}; at most {most} are downloaded.", name=name, size=size, most=most),
            _("Give a part of it."),
        )
    try:
        loaded = datasets.load_dataset(name.repository, name.configuration, revision=commit)
    except Exception as error:
        raise _not_loaded(name, error) from error
    try:
        splits = splits_of(loaded, caption_column)
    except RefusedError as refusal:
        message = _("{name} cannot be used: {reason}.", name=name, reason=refusal.reason)
        raise DatasetError(message, _("Choose a dataset of images.")) from refusal
    return HubDataset(commit=commit, splits=splits, roots=_caches(datasets))


def _look_up(name: HubName, endpoint: str | None) -> tuple[str, int]:
    """Commit and bytes of the dataset's files."""
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        info = api.dataset_info(name.repository, revision=name.revision, files_metadata=True, timeout=30)
    except Exception as error:
        raise not_found(name, error) from error
    return str(info.sha), sum(file.size or 0 for file in info.siblings or ())


def gated(name: HubName, *, may_have_token: bool) -> DatasetError:
    """The error about a dataset that not everyone may download."""
    hint = _("Download it yourself, and give the files.")
    if may_have_token:
        hint = _("Ask for access on its page on huggingface.co, then set HF_TOKEN to your token.")
    return DatasetError(_("{name} is gated: its owner must grant access first.", name=name), hint)


def not_found(name: HubName, error: Exception, *, may_have_token: bool = True) -> DatasetError:
    """The error for what the hub, or the way to it, answered; `may_have_token`: the reader may set HF_TOKEN."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return gated(name, may_have_token=may_have_token)
    if isinstance(error, errors.RevisionNotFoundError):
        message = _("{repository} has no revision {revision}.", repository=name.repository, revision=name.revision)
        return DatasetError(message, _("Leave the revision out for the newest one."))
    status = getattr(getattr(error, "response", None), "status_code", None)
    # The hub does not say which of the two it is.
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        message = _("There is no dataset {name} on the Hugging Face hub, or it is private.", name=name.repository)
        hint = _("Check its name.")
        return DatasetError(
            message, _("Check its name; for a private one, set HF_TOKEN to your token.") if may_have_token else hint
        )
    if isinstance(error, errors.HFValidationError):
        return DatasetError(_("{name} is not the name of a dataset.", name=name), _("Write it as hf://owner/name."))
    if isinstance(error, errors.OfflineModeIsEnabled):
        message = _("{name} cannot be downloaded: HF_HUB_OFFLINE is set.", name=name)
        return DatasetError(message, _("Unset it, or give files."))
    if isinstance(error, errors.HfHubHTTPError):
        message = _("{name} cannot be downloaded: the Hugging Face hub answers {status}.", name=name, status=status)
        return DatasetError(message, _("Try again later."))
    message = _(
        "{name} cannot be downloaded: Hugging Face cannot be reached ({error}).", name=name, error=_one_line(error)
    )
    return DatasetError(message, _("Check the connection, or give an exported folder of the dataset."))


def _not_loaded(name: HubName, error: Exception) -> DatasetError:
    details, why = str(error), _one_line(error)
    if "Config name is missing" in details or "BuilderConfig" in details:
        message = _("{name} has several configurations: {error}", name=name, error=why)
        return DatasetError(message, _("Write {name}/CONFIGURATION.", name=name))
    if "script" in details.lower():
        message = _("{name} needs its own loading script, which is not run.", name=name)
        return DatasetError(message, _("Export it to Parquet first."))
    message = _("{name} cannot be loaded: {error}.", name=name, error=why)
    return DatasetError(message, _("Try another revision, or give files."))


def _caches(datasets: Any) -> tuple[Path, ...]:
    import huggingface_hub.constants

    return Path(str(datasets.config.HF_DATASETS_CACHE)), Path(huggingface_hub.constants.HF_HUB_CACHE)
