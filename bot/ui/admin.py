"""What those who run the machine see and press: switches, slots, limits of roles, storage."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Self

import discord
from discord import ui

from bot.queue.domain.job import Job, Priority, State
from bot.queue.planning.retention import Plan, Totals
from bot.queue.store.limits import RoleLimit
from bot.queue.store.queue_control import Halt, HaltKind
from bot.queue.store.slots import Slot
from bot.ui.card import state_words
from bot.ui.layout import Colour, MessageContent, box, layout, row
from bot.ui.storage import storage_message
from bot.ui.text import counted, first_lines, listed, plain, size


class AdminButton(
    ui.DynamicItem[ui.Button[ui.LayoutView]], template=r"admin:(?P<verb>[a-z_]{1,20}):(?P<arg>[0-9a-z]{1,40})"
):
    """The bot hears a press as `admin_button`: the verb, and the digest of what was shown."""

    def __init__(self, verb: str, arg: str, button: ui.Button[ui.LayoutView]) -> None:
        button.custom_id = f"admin:{verb}:{arg}"
        super().__init__(button)
        self.verb = verb
        self.arg = arg

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        assert isinstance(item, ui.Button)
        return cls(match["verb"], match["arg"], item)

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        # Through the client, as with `JobButton`.
        interaction.client.dispatch("admin_button", interaction, self.verb, self.arg)


def plan_digest(plan: Plan) -> str:
    """What a plan deletes, in 16 letters: only the plan that was shown is carried out."""
    named = ",".join(f"{one.job_id}:{one.what}" for one in sorted(plan.deletions, key=lambda one: one.job_id))
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def storage_page(plan: Plan, totals: Totals, note: str = "") -> MessageContent:
    """What the jobs take, what is due to be deleted and why, and the button for it."""
    content = storage_message(plan, totals)
    if note:
        content.layout.add_item(ui.TextDisplay(note))
    if plan.deletions:
        content.layout.add_item(row(_admin_button("delete", plan, "Delete these", discord.ButtonStyle.danger)))
    return content


def confirm_page(plan: Plan) -> MessageContent:
    """The second question, before anything goes."""
    text = (
        f"Delete files of {counted(len(plan.deletions), 'job')}, {size(plan.bytes)}? They cannot be brought back. "
        "Jobs that are pinned, shared or queued again by then keep theirs."
    )
    button = row(_admin_button("delete_now", plan, "Yes, delete them", discord.ButtonStyle.danger))
    return MessageContent(layout=layout(box(Colour.FAILED, text, button)))


def _admin_button(verb: str, plan: Plan, label: str, style: discord.ButtonStyle) -> AdminButton:
    return AdminButton(verb, plan_digest(plan), ui.Button(label=label, style=style))


def halted_words(halt: Halt, running: int) -> str:
    """What a pause or a drain means for what runs."""
    why = f" (“{plain(halt.why, 300)}”)" if halt.why else ""
    one = running == 1
    if not running:
        runs = "nothing runs"
    elif halt.kind is HaltKind.PAUSE:
        runs = f"{counted(running, 'training')} that {'runs goes' if one else 'run go'} on"
    else:
        runs = f"{counted(running, 'training')} {'saves' if one else 'save'} a checkpoint and"
        runs += f" {'waits' if one else 'wait'} at the front of the line"
    done = "paused" if halt.kind is HaltKind.PAUSE else "drained"
    return f"⛔ The queue is {done}{why}: nothing new starts, and {runs}. /admin resume lets it run again."


def bumped_words(before: Job, after: Job, priority: Priority) -> str:
    """What came of giving a job another priority."""
    name = f"#{after.id}"
    if before.state is not State.QUEUED:
        return f"{name} does not wait: {state_words(before)[1].lower()}. Only waiting jobs have a place in line."
    if before.priority is priority:
        return f"{name} has {priority.name.lower()} priority already."
    return f"{name} has {priority.name.lower()} priority now."


def slots_page(slots: Sequence[Slot], note: str = "") -> MessageContent:
    """Every place where a training may run."""
    lines = first_lines([_slot_line(slot) for slot in slots], most=30, characters=2500)
    text = "\n".join(["### Slots", *lines]) if lines else "### Slots\nThere are none; nothing can run."
    return MessageContent(layout=layout(box(Colour.NOTE, note or None, text)))


def slot_choice(slot: Slot) -> str:
    """A slot in an autocomplete list."""
    use = f"#{slot.job_id}" if slot.job_id is not None else "free"
    return f"{slot.name} · {use if slot.is_enabled else 'switched off'}"[:100]


def _slot_line(slot: Slot) -> str:
    memory = "" if slot.memory_bytes is None else f" · {size(slot.memory_bytes)}"
    uses = [] if slot.job_id is None else [f"#{slot.job_id}"]
    if not slot.is_enabled:
        uses.append("**switched off**")
    return f"{plain(slot.name, 60)}{memory} · {' · '.join(uses) or 'free'}"


def limits_page(limits: Sequence[RoleLimit], note: str = "") -> MessageContent:
    """What the members of each role may ask for; whoever has several gets the most generous of each."""
    lines = first_lines([_limit_line(limit) for limit in limits], characters=2500)
    text = (
        "\n".join(["### Limits of roles", *lines]) if lines else "### Limits of roles\nNone: the configuration holds."
    )
    return MessageContent(layout=layout(box(Colour.NOTE, note or None, text)))


def _limit_line(limit: RoleLimit) -> str:
    words = [
        "" if limit.max_waiting is None else f"{limit.max_waiting} waiting",
        "" if limit.max_running is None else f"{limit.max_running or 'any number'} running",
        "" if limit.max_epochs is None else counted(limit.max_epochs, "epoch"),
        "" if limit.max_dataset_mib is None else f"{limit.max_dataset_mib:,} MiB a dataset",
        "" if limit.gpu_hours_per_week is None else f"{limit.gpu_hours_per_week or 'any number of'} GPU-h a week",
    ]
    return f"<@&{limit.role_id}> · {listed(word for word in words if word) or 'nothing of its own'}"
