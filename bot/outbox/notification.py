"""Notifications: what a transition or an event causes; stored in the same transaction, rendered when it is sent."""

from __future__ import annotations

from enum import StrEnum

from bot.outbox.transport import HoldReason
from trainer.protocol.frozen import Frozen


class NotificationKind(StrEnum):
    """One kind, one layout."""

    #: The live card of a job: one message, edited; only its newest state is ever sent.
    CARD = "card"
    #: Where a job has no thread: one message for all that would be in it, edited; `parts` are what it shows.
    LATEST = "latest"
    #: Sent only to those who asked for it (`audience`).
    QUEUED = "queued"
    STARTED = "started"
    #: The base's samples and validation loss, before the first step.
    BASE = "base"
    #: A picture of a job in the gallery: one message, edited with each like, deleted when it is withdrawn.
    GALLERY = "gallery"
    #: Of no job: how much of an upload by page has arrived; one message, edited, and deleted once it is answered.
    UPLOAD = "upload"
    #: The end of an epoch.
    EPOCH = "epoch"
    #: Early stopping ends the training.
    EARLY_STOP = "early_stop"
    #: A stage begins, or blocks are unfrozen.
    STAGE = "stage"
    #: A warning of the trainer.
    WARNING = "warning"
    #: The first warning of a job that costs its owner something until a person acts: the same, in the channel.
    ALARM = "alarm"
    #: The result; mentions the owner.
    DONE = "done"
    #: A sampling is done; its card shows the images.
    DRAWN = "drawn"
    #: Mentions the owner.
    FAILED = "failed"
    #: A user stopped it.
    CANCELLED = "cancelled"
    #: The attempt was lost or failed, and the job continues from its checkpoint.
    LOST = "lost"
    #: A user paused it; its GPU is free.
    PAUSED = "paused"
    #: Its model is on the Hugging Face hub, or could not be uploaded. `detail` is the `Publication`.
    PUBLISHED = "published"
    #: Of no job (`job_id` 0): a digest, a full disk, a restart. `detail` is the news.
    NEWS = "news"
    #: Of no job: what an interaction could not be answered with; mentions `owner_id`. `detail` is the text.
    ANSWER = "answer"
    #: Of no job: the bot has joined a server.
    WELCOME = "welcome"
    #: Another message could not be delivered: notifies its owner elsewhere, in a direct message or the log channel.
    UNDELIVERED = "undelivered"


#: What a job's channel shows; everything else about a job is in its thread.
IN_CHANNEL = frozenset(
    {
        NotificationKind.CARD,
        NotificationKind.LATEST,
        NotificationKind.GALLERY,
        NotificationKind.ALARM,
        NotificationKind.DONE,
        NotificationKind.DRAWN,
        NotificationKind.FAILED,
    }
)


#: Their owner is notified at once if they cannot be delivered.
AWAITED = frozenset({NotificationKind.DONE, NotificationKind.DRAWN, NotificationKind.FAILED, NotificationKind.ANSWER})


class UndeliveredReason(StrEnum):
    """Why a message is not where it belongs."""

    #: The channel takes no messages for now; this one waits.
    HELD = "held"
    #: The channel was deleted.
    GONE = "gone"
    #: It could not be made or was refused.
    FAILED = "failed"


class Undelivered(Frozen):
    """The message that an `UNDELIVERED` notification is about."""

    reason: UndeliveredReason
    #: Of a held channel.
    hold: HoldReason | None = None
    channel_id: int
    #: None: any message of the owner.
    kind: NotificationKind | None = None


class Notification(Frozen):
    """One message to one channel or user: a kind, a job and an event; it is rendered from the rows of both."""

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
    #: The server and the user whose matter it is; 0: none. Its managers may send it again; the user is notified
    #: elsewhere if it cannot be delivered.
    guild_id: int = 0
    owner_id: int = 0
    #: Of an upload: the draft and dataset that it became (0: none).
    draft_id: int = 0
    dataset_id: int = 0
    #: Whom it mentions; `is_quiet`: it makes no sound.
    mentions: tuple[int, ...] = ()
    is_quiet: bool = False
    #: A direct message to the one whom it mentions; `is_returned`: they take none, so it is in the job's thread.
    is_direct: bool = False
    is_returned: bool = False
    #: Epochs that a message about an epoch stands for: its own is the last of them.
    epochs: int = 1
    #: Of `GALLERY`: the `gallery_post`; of `UPLOAD`: the interaction.
    post_id: int = 0
    #: Of `LATEST`: the newest samples, and what else is new; oldest first.
    parts: tuple[Notification, ...] = ()
    #: Of `UNDELIVERED`; `detail` is that of the other message.
    undelivered: Undelivered | None = None

    def as_undelivered(self, undelivered: Undelivered, *, key: str) -> Notification:
        """Return the notification for this one's owner that it could not be delivered."""
        changes = {
            "kind": NotificationKind.UNDELIVERED,
            "dedupe_key": f"undelivered:{key}",
            "mentions": (),
            "undelivered": undelivered,
        }
        return self.model_copy(update=changes)
