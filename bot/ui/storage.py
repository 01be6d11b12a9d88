"""What the jobs take on the disk, and what would be deleted to make room."""

from __future__ import annotations

from collections.abc import Sequence

from bot.queue.planning.retention import Deletion, Plan, Totals
from bot.ui.layout import Colour, MessageContent, box, layout
from bot.ui.text import counted, plain, size

_SHOWN = 15


def storage_message(plan: Plan, totals: Totals) -> MessageContent:
    """Sums by person, largest first, and the plan with the reason of each deletion."""
    by_size = sorted(totals.bytes_by_owner.items(), key=lambda item: -item[1])
    people = [f"<@{owner}> · {size(count)}" for owner, count in by_size if count]
    head = f"### Storage\nJobs take {size(sum(totals.bytes_by_owner.values()))}; {size(totals.free_bytes)} are free."
    held = f"-# {size(totals.held_bytes)} of ended jobs are pinned or shared, and kept." if totals.held_bytes else None
    body = box(Colour.NOTE, head, "\n".join(_shortened(people)) or None, held, _planned(plan.deletions))
    return MessageContent(layout=layout(body))


def _planned(deletions: Sequence[Deletion]) -> str:
    if not deletions:
        return "Nothing is due to be deleted."
    freed = sum(deletion.bytes for deletion in deletions)
    lines = [f"- <@{deletion.owner_id}> · {plain(deletion.sentence)}" for deletion in deletions]
    title = f"**Due to be deleted: files of {counted(len(deletions), 'job')}, {size(freed)}**"
    return "\n".join((title, *_shortened(lines)))


def _shortened(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"… and {rest} more"] if rest > 0 else list(lines)
