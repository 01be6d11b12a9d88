"""Datasets: received within a size limit, stored by content, prepared in a process of their own."""

from bot.datasets.dataset import Dataset, Received, ReceivedFile, Upload, may_change, may_see, require_change, title_of
from bot.datasets.dataset_store import DatasetStore
from bot.datasets.hub_datasets import HubDatasets, hub_name
from bot.datasets.pending_uploads import ImportRequest, PendingUpload, PendingUploads, UploadKind, import_files
from bot.datasets.prepare_runner import progress_reported
from bot.datasets.resumable_uploads import ArrivingFile, ResumableUploads

__all__ = [
    "ArrivingFile",
    "Dataset",
    "DatasetStore",
    "HubDatasets",
    "ImportRequest",
    "PendingUpload",
    "PendingUploads",
    "Received",
    "ReceivedFile",
    "ResumableUploads",
    "Upload",
    "UploadKind",
    "hub_name",
    "import_files",
    "may_change",
    "may_see",
    "progress_reported",
    "require_change",
    "title_of",
]
