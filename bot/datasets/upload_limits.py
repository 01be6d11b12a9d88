"""What may be uploaded: its size, its files and images, one person's share of the disk, and what must stay free."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.config import LimitSettings, WebSettings
from bot.datasets.dataset import Dataset, Received
from bot.db import Row
from bot.errors import DatasetRefused, DatasetTooLarge, DiskAlmostFull, TooFewImages, TooManyDatasets
from trainer.protocol.report import Counts
from trainer.protocol.text import _


@dataclass(frozen=True)
class UploadLimits:
    """The limits that `DatasetStore` checks before it downloads, and before it stores a dataset."""

    settings: LimitSettings
    #: The upload page takes more than Discord does.
    web: WebSettings
    #: Of the disk; 0: any.
    min_free_bytes: int = 0

    @property
    def max_bytes(self) -> int:
        """All files of the largest dataset that there can be."""
        by_page = self.web.max_upload_bytes if self.web.is_on else 0
        return max(self.settings.max_dataset_bytes, by_page)

    @property
    def max_files(self) -> int:
        """Files of a dataset, however they came."""
        by_page = self.web.max_upload_files if self.web.is_on else 0
        return max(self.settings.max_dataset_files, by_page)

    def require_disk(self, folder: Path, more_bytes: int = 0) -> None:
        """Raise unless the disk of a folder has room for so many bytes more; the folder is made.

        Raises:
            DiskAlmostFull: It has not.
        """
        folder.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes - more_bytes < self.min_free_bytes:
            raise DiskAlmostFull(free_bytes=free_bytes)

    def require_share(self, stored: Iterable[Row], *, datasets: int, more_bytes: int) -> None:
        """Raise unless a person may store more.

        Args:
            stored: One row: the `datasets` and `bytes` that they have.
            datasets: How many more.
            more_bytes: Of the uploaded files.

        Raises:
            TooManyDatasets: They may not.
        """
        (row,) = stored
        datasets, stored_bytes = row["datasets"] + datasets, row["bytes"] + more_bytes
        most, most_bytes = self.settings.max_datasets_per_user, self.settings.max_stored_bytes_per_user
        if datasets > most or stored_bytes > most_bytes:
            raise TooManyDatasets(datasets=datasets, max_datasets=most, stored_bytes=stored_bytes, max_bytes=most_bytes)

    def require_few_files(self, files: int, *, allowed: int | None = None) -> None:
        """Raise unless a dataset may have so many files; `allowed` is what attachments may be, unless it is given.

        Raises:
            DatasetRefused: It may not.
        """
        allowed = self.settings.max_dataset_files if allowed is None else allowed
        if files > allowed:
            raise DatasetRefused(
                _(
                    "A dataset may have {allowed} files; this one would have {files}. Put them into a zip.",
                    allowed=allowed,
                    files=files,
                )
            )

    def require_enough_images(self, counts: Counts) -> None:
        """Raise unless a dataset can be trained on.

        Raises:
            TooFewImages: It cannot.
        """
        needed = self.settings.min_images
        if counts.kept < needed:
            raise TooFewImages(kept=counts.kept, dropped=counts.dropped, refused=counts.refused, needed=needed)

    def require_room(self, dataset: Dataset, there: Sequence[tuple[str, int]], received: Received) -> None:
        """Raise unless files may be added to those of a dataset; `there` has their names and sizes.

        Raises:
            DatasetRefused: There would be too many, or too large ones.
        """
        self.require_few_files(len(there) + len(received.files), allowed=self.max_files)
        if sum(size for _name, size in there) + received.bytes > self.max_bytes:
            name = _("{dataset} with {files}", dataset=dataset.name, files=received.title)
            raise DatasetTooLarge(file_name=name, max_bytes=self.max_bytes)
