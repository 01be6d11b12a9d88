"""Pictures in the rows of a Hugging Face dataset, saved to a folder or exported as Parquet: their bytes as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from trainer.dataset.archives import RefusedError
from trainer.dataset.captions.caption_sources import clean
from trainer.dataset.captions.tables import CAPTION_COLUMNS, CLASS_COLUMNS, TAG_COLUMNS
from trainer.dataset.entry import Entry, Told
from trainer.dataset.limits import Limits
from trainer.protocol.report import RefusalKind

#: Columns of bare bytes that are taken for pictures.
_PICTURE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp", "bytes", "image_bytes")
#: Parquet is inflated a row group at a time; writers of pictures put 100 rows in one.
_MAX_ROW_GROUP_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold what."""

    image: str
    caption: str | None
    class_name: str | None
    #: What the numbers of a class column mean.
    class_names: tuple[str, ...]

    def used(self) -> list[str]:
        return [name for name in (self.image, self.caption, self.class_name) if name is not None]


class Rows(Protocol):
    """A dataset of one split."""

    columns: Columns

    def __len__(self) -> int: ...

    def values(self, column: str, count: int) -> Sequence[object]:
        """The first `count` values of a column."""

    def cell(self, row: int) -> object:
        """The picture of a row: bytes, or a mapping with `bytes` and `path`."""


def datasets_library() -> Any:
    """`datasets`, told to stay quiet; it takes a second to import, so only here and only when needed."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.disable_progress_bars()
    return datasets


def is_saved(folder: Path) -> bool:
    """True for what `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write."""
    is_one = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    return is_one or (folder / "dataset_dict.json").is_file()


def open_saved(folder: Path) -> dict[str, Rows]:
    """The splits of a dataset that was saved to a folder; one without splits is named "".

    Raises:
        RefusedError: it is damaged, or holds no pictures.
    """
    datasets = datasets_library()
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # it reads JSON and Arrow of unknown making, and raises what they raise
        raise _unreadable(error) from error
    return splits_of(loaded)


def splits_of(loaded: Any) -> dict[str, Rows]:
    """The splits of a loaded `Dataset` or `DatasetDict`, pictures left encoded."""
    splits = loaded.items() if isinstance(loaded, dict) else [("", loaded)]
    return {name: _Loaded(dataset) for name, dataset in splits}


class _Loaded:
    """Rows of a `datasets.Dataset`, which maps its files into memory."""

    def __init__(self, dataset: Any) -> None:
        datasets = datasets_library()
        self.columns = columns_of(dataset.features)
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
    """Rows of one Parquet file.

    Raises:
        RefusedError: it is damaged, or holds no pictures.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self._group: tuple[int, Any] = -1, None
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
            features = datasets_library().Features.from_arrow_schema(self._file.schema_arrow)
        except Exception as error:  # as in `open_saved`
            raise _unreadable(error) from error
        self.columns = columns_of(features)
        sizes = [self._file.metadata.row_group(place) for place in range(self._file.num_row_groups)]
        if any(group.total_byte_size > _MAX_ROW_GROUP_BYTES for group in sizes):
            raise RefusedError(RefusalKind.TOO_LARGE, "one of its row groups is larger than 2 GiB")
        self._starts = [0]
        for group in sizes:
            self._starts.append(self._starts[-1] + group.num_rows)

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._starts[-1]

    def values(self, column: str, count: int) -> Sequence[object]:
        values: list[object] = []
        for place in range(self._file.num_row_groups):
            if len(values) >= count:
                break
            values += self._file.read_row_group(place, columns=[column]).column(column).to_pylist()
        return values[:count]

    def cell(self, row: int) -> object:
        place = next(i for i, (start, end) in enumerate(pairwise(self._starts)) if start <= row < end)
        if self._group[0] != place:
            # Rows are read in order, so the last group is all that need be kept.
            self._group = -1, None
            self._group = place, self._file.read_row_group(place, columns=[self.columns.image])
        cell: object = self._group[1].column(self.columns.image)[row - self._starts[place]].as_py()
        return cell


def columns_of(features: Mapping[str, Any]) -> Columns:
    """The columns that hold the picture, its caption and its class, by type and by well-known names.

    Raises:
        RefusedError: none holds pictures.
    """
    image = next((name for name, feature in features.items() if _is_picture(name, feature)), None)
    if image is None:
        raise RefusedError(RefusalKind.UNSUPPORTED, f"none of its columns holds pictures ({', '.join(features)})"[:300])
    names = {name.lower(): name for name in features if name != image}
    class_column = next((names[name] for name in CLASS_COLUMNS if name in names), None)
    labelled = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    class_column = labelled[0] if labelled else class_column
    return Columns(
        image=image,
        caption=next((names[name] for name in CAPTION_COLUMNS + TAG_COLUMNS if name in names), None),
        class_name=class_column,
        class_names=tuple(getattr(features[class_column], "names", None) or ()) if class_column else (),
    )


def _is_picture(name: str, feature: Any) -> bool:
    if type(feature).__name__ == "Image":
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    return name.lower() in _PICTURE_COLUMNS and getattr(feature, "dtype", "") in ("binary", "large_binary")


def entries_of(
    rows: Rows, *, label: str, part: str, scope: int, limits: Limits, roots: Sequence[Path]
) -> Iterator[Entry]:
    """An entry for each row; files that rows name are read only below `roots`."""
    count = min(len(rows), limits.max_entries)
    columns = rows.columns
    captions = rows.values(columns.caption, count) if columns.caption else [None] * count
    classes = rows.values(columns.class_name, count) if columns.class_name else [None] * count
    for row, (caption, class_value) in enumerate(zip(captions, classes, strict=True)):
        path = f"{part}/{row + 1}" if part else f"{row + 1}"
        told = Told(caption=_caption(caption), class_name=_class_name(class_value, columns.class_names))
        read = partial(_read, rows, row, limits.max_entry_bytes, roots)
        yield Entry(source=f"{label}!{path}", path=path, scope=scope, read=read, told=told)


def _caption(value: object) -> str:
    if isinstance(value, list):
        # Several captions for one picture: the first one serves.
        value = next((part for part in value if isinstance(part, str)), "")
    return clean(value) if isinstance(value, str) else ""


def _class_name(value: object, names: tuple[str, ...]) -> str:
    if isinstance(value, int) and names:
        return clean(names[value]) if 0 <= value < len(names) else ""
    return clean(str(value)) if isinstance(value, str | int) else ""


def _read(rows: Rows, row: int, limit_bytes: int, roots: Sequence[Path]) -> bytes:
    try:
        cell = rows.cell(row)
    except Exception as error:  # as in `open_saved`
        raise _unreadable(error) from error
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if data is None and isinstance(cell, dict) and isinstance(cell.get("path"), str):
        data = _read_file(cell["path"], limit_bytes, roots)
    if not isinstance(data, bytes):
        raise RefusedError(RefusalKind.DAMAGED, "its row holds no picture")
    if len(data) > limit_bytes:
        raise RefusedError(RefusalKind.TOO_LARGE, f"it is larger than {limit_bytes / 2**20:.0f} MiB")
    return data


def _read_file(name: str, limit_bytes: int, roots: Sequence[Path]) -> bytes:
    """A file that a row names instead of holding its bytes: whoever made the dataset may name any file."""
    for root in roots:
        path = (root / name).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            with path.open("rb") as file:
                return file.read(limit_bytes + 1)
    raise RefusedError(RefusalKind.UNSAFE_PATH, "its row names a file that does not belong to the dataset")


def _unreadable(error: Exception) -> RefusedError:
    reason = clean(str(error))[:200] or type(error).__name__
    return RefusedError(RefusalKind.DAMAGED, f"it is damaged ({reason})")
