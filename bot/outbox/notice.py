"""What is to be told to people: a semantic message, stored with the state change that caused it, rendered when sent."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from trainer.protocol.events import Event


class NoticeKind(StrEnum):
    """One kind, one layout."""

    #: The live card of a job; edited in place, only its newest state is ever sent.
    CARD = "card"
    #: The base model's samples and validation loss, before the first step. events: [sampled(0)?, base_validated]
    BASE = "base"
    #: One epoch. events: [sampled?, epoch_ended]
    EPOCH = "epoch"
    #: events: [stopped_early]
    EARLY_STOP = "early_stop"
    #: A stage begins, or blocks join it. events: [stage_began]
    STAGE = "stage"
    #: events: [warned]
    WARNING = "warning"
    #: The result, mentioning the owner. events: [tested?, exported…, finished]
    DONE = "done"
    #: events: [failed] or [] with `detail`; mentions the owner.
    FAILED = "failed"
    #: A person stopped it. events: [stopped] or []
    CANCELLED = "cancelled"
    #: The process died, or failed in a way that another start may mend, and the job goes on from its checkpoint.
    #: `detail` says it in words.
    LOST = "lost"
    #: A person paused it: its GPU is free.
    PAUSED = "paused"
    #: Of no job (`job_id` 0): a digest, a full disk, "back after 42 s". `detail` is the text.
    NEWS = "news"
    #: What became of files that an earlier bot had taken in; mentions `owner_id`. `detail` is the text.
    UPLOAD = "upload"


class Notice(BaseModel):
    """One message to one channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: NoticeKind
    #: 0 for news and uploads, which are of no job.
    job_id: int
    attempt: int = 0
    events: tuple[Event, ...] = ()
    detail: str = ""
    #: Of an upload: whose it is, and the request that waits for "Go on" with its dataset (0: none).
    owner_id: int = 0
    draft_id: int = 0
    dataset_id: int = 0
