"""A dataset on the Hugging Face hub before it is downloaded: what `python -m trainer fetch-dataset --facts` writes."""

from __future__ import annotations

from pydantic import Field

from trainer.protocol.frozen import Frozen


class HubDatasetFacts(Frozen):
    """What a person should know before a dataset is downloaded; only what a preparation uses counts."""

    #: `owner/name`, or `owner/name/folder`.
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
