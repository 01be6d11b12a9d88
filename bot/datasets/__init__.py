"""Datasets as people hand them in: received under a size limit, kept by content, examined in a process of its own."""

from bot.datasets.dataset import Dataset, Received, ReceivedFile, Upload
from bot.datasets.rules import may_change, require_change
from bot.datasets.store import DatasetStore

__all__ = ["Dataset", "DatasetStore", "Received", "ReceivedFile", "Upload", "may_change", "require_change"]
