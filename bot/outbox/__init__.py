"""Messages to users: stored with the change that causes them, sent in order, each once."""

from bot.outbox.notification import Notification, NotificationKind, Undelivered, UndeliveredReason
from bot.outbox.outbox import Destination, Outbox
from bot.outbox.sender import Render, Sender
from bot.outbox.transport import (
    ChannelGone,
    ChannelHeld,
    DeliveryFailed,
    HoldReason,
    MessageForm,
    MessageGone,
    MessageRefused,
    MessageTooLarge,
    NoThread,
    RecipientUnreachable,
    SendLater,
    Transport,
)

__all__ = [
    "ChannelGone",
    "ChannelHeld",
    "DeliveryFailed",
    "Destination",
    "HoldReason",
    "MessageForm",
    "MessageGone",
    "MessageRefused",
    "MessageTooLarge",
    "NoThread",
    "Notification",
    "NotificationKind",
    "Outbox",
    "RecipientUnreachable",
    "Render",
    "SendLater",
    "Sender",
    "Transport",
    "Undelivered",
    "UndeliveredReason",
]
