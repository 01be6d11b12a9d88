"""Messages to users: stored with the change that causes them, sent in order, each once."""

from bot.outbox.notification import Notification, NotificationKind
from bot.outbox.outbox import Outbox, marker
from bot.outbox.sender import MessageGone, Render, Sender, SendLater, SendNever, Transport

__all__ = [
    "MessageGone",
    "Notification",
    "NotificationKind",
    "Outbox",
    "Render",
    "SendLater",
    "SendNever",
    "Sender",
    "Transport",
    "marker",
]
