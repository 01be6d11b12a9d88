"""What is to be told to people: stored with the change that causes it, sent in order, each message once."""

from bot.outbox.notice import Notice, NoticeKind
from bot.outbox.post import MessageGone, Post, Render, SendLater, SendNever
from bot.outbox.sender import Sender
from bot.outbox.store import Outbox, marker

__all__ = [
    "MessageGone",
    "Notice",
    "NoticeKind",
    "Outbox",
    "Post",
    "Render",
    "SendLater",
    "SendNever",
    "Sender",
    "marker",
]
