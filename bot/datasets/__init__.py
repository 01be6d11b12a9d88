"""Datasets as people hand them in: received under a size limit, kept by content, examined in a process of its own."""

from bot.datasets.dataset import Dataset, Received, ReceivedFile, Upload, title_of
from bot.datasets.importing import ImportWishes, import_files
from bot.datasets.rules import may_change, require_change
from bot.datasets.store import DatasetStore
from bot.datasets.uploads import PendingUpload, UploadKind, Uploads

__all__ = [
    "Dataset",
    "DatasetStore",
    "ImportWishes",
    "PendingUpload",
    "Received",
    "ReceivedFile",
    "Upload",
    "UploadKind",
    "Uploads",
    "import_files",
    "may_change",
    "require_change",
    "title_of",
]
