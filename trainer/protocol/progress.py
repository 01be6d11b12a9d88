"""How far a preparation has come: what `trainer prepare` and `trainer caption` report while they work."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from trainer.protocol.frozen import Frozen


class PreparePhase(StrEnum):
    """What is being done, in this order."""

    #: For a place: other datasets are looked at first.
    WAITING = "waiting"
    #: From the Hugging Face hub, by files.
    DOWNLOADING = "downloading"
    READING = "reading"
    COMPARING = "comparing"
    DRAWING = "drawing"
    CAPTIONING = "captioning"


class PrepareProgress(Frozen):
    """How much of a phase is done."""

    phase: PreparePhase
    #: Images; pairs of images while they are compared, files while they are downloaded.
    done: int = Field(ge=0)
    total: int = Field(ge=0)
