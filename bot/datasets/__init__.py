"""Datasets: received within a size limit, stored by content, prepared in a process of their own."""

from bot.datasets.dataset import Dataset, Received, ReceivedFile, Upload, may_change, require_change, title_of
from bot.datasets.dataset_store import DatasetStore
from bot.datasets.pending_uploads import ImportRequest, PendingUpload, PendingUploads, UploadKind, import_files
from bot.datasets.prepare_runner import progress_told

__all__ = [
    "Dataset",
    "DatasetStore",
    "ImportRequest",
    "PendingUpload",
    "PendingUploads",
    "Received",
    "ReceivedFile",
    "Upload",
    "UploadKind",
    "import_files",
    "may_change",
    "progress_told",
    "require_change",
    "title_of",
]
