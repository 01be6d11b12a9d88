"""The Hugging Face hub: a dataset before it is downloaded, and a model that is uploaded.

`python -m trainer fetch-dataset --facts` and `publish` write these.
"""

from __future__ import annotations

import re

from pydantic import Field

from trainer.protocol.frozen import Frozen

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class HubDatasetFacts(Frozen):
    """What a person should know before a dataset is downloaded; only what a preparation uses counts."""

    #: `owner/name`, or `owner/name/configuration`, which may be a folder.
    name: str
    commit: str
    files: int = Field(ge=0)
    bytes: int = Field(ge=0)
    #: As its card names it; empty if it does not.
    license: str = ""
    #: Some files are Parquet or Arrow, whose images are to be written as files first (`extract-rows`).
    has_tables: bool = False

    @property
    def source(self) -> str:
        """The name that downloads exactly this."""
        return f"hf://{self.name}@{self.commit}"

    @property
    def page(self) -> str:
        """Its page on the hub, for a person."""
        owner, name = self.name.split("/")[:2]
        return f"https://huggingface.co/datasets/{owner}/{name}"


class Published(Frozen):
    """A model that is on the hub."""

    url: str
    is_private: bool
    #: All of it was there already.
    is_unchanged: bool = False


def repository_of(namespace: str, name: str, job_id: int) -> str:
    """Return `namespace/fox-12`: the hub takes letters, digits, `-`, `_` and `.`, and no two of the last in a row."""
    cleaned = re.sub(r"[.-]{2,}", "-", _NOT_IN_NAMES.sub("-", name)).strip("-.")[:80] or "model"
    return f"{namespace}/{cleaned}-{job_id}"
