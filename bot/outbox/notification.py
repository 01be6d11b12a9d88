"""Notifications: what a transition or an event causes; stored in the same transaction, rendered when it is sent."""

from __future__ import annotations

from enum import StrEnum

from trainer.protocol.frozen import Frozen


class NotificationKind(StrEnum):
    """One kind, one layout."""

    #: The live card of a job: one message, edited; only its newest state is ever sent.
    CARD = "card"
    #: The base's samples and validation loss, before the first step.
    BASE = "base"
    #: The end of an epoch.
    EPOCH = "epoch"
    #: Early stopping ends the training.
    EARLY_STOP = "early_stop"
    #: A stage begins, or blocks are unfrozen.
    STAGE = "stage"
    #: A warning of the trainer.
    WARNING = "warning"
    #: The result; mentions the owner.
    DONE = "done"
    #: Mentions the owner.
    FAILED = "failed"
    #: A user stopped it.
    CANCELLED = "cancelled"
    #: The attempt was lost or failed, and the job continues from its checkpoint.
    LOST = "lost"
    #: A user paused it; its GPU is free.
    PAUSED = "paused"
    #: Of no job (`job_id` 0): a digest, a full disk, a restart. `detail` is the news.
    NEWS = "news"
    #: What became of files that an earlier bot had received; mentions `owner_id`. `detail` is the text.
    UPLOAD = "upload"


class Notification(Frozen):
    """One message to one channel: a kind, a job and an event; it is rendered from the rows of both."""

    kind: NotificationKind
    #: 0 for news and uploads.
    job_id: int = 0
    #: The attempt that caused it; 0: none.
    attempt: int = 0
    #: `seq` of the event that caused it; 0: none.
    seq: int = 0
    #: A notification with a key that is in the outbox already is not sent again; empty: a card.
    dedupe_key: str = ""
    #: Of news and uploads.
    detail: str = ""
    #: Of an upload: its owner, and the draft and dataset that it became (0: none).
    owner_id: int = 0
    draft_id: int = 0
    dataset_id: int = 0
