"""k-fold and compare in the channel: one parent, one card, child jobs in whatever slots are free."""

from bot.studies.studies import Studies

__all__ = ["Studies"]
