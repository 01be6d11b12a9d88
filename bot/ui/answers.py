"""What came of asking something of a job: what changed, or the real state where nothing did."""

from __future__ import annotations

from bot.queue.domain.job import Job, State, StopIntent
from bot.queue.domain.verbs import Verb
from bot.ui.card import state_words
from bot.ui.layout import FileToSend, MessageContent, button, layout, picture, row, sendable
from bot.ui.posts import samples_alt
from bot.ui.receipts import said
from bot.ui.standing import Standing
from bot.ui.text import ordinal, plain
from trainer.protocol.events import Sampled


def answer(verb: Verb, before: Job, after: Job, place: int | None = None) -> str:
    """What to tell somebody who asked for `verb`; a second press is told how it stands."""
    match verb:
        case Verb.CANCEL | Verb.KEEP_BEST | Verb.PAUSE:
            return stop_answer(verb, before, after)
        case Verb.RESUME | Verb.RETRY:
            return _again_answer(verb, before, after, place)
        case Verb.PIN:
            again = " already" if before.is_pinned else ""
            return f"📌 #{after.id} is pinned{again}: its files are kept, whatever the limits say."
        case Verb.UNPIN:
            return f"#{after.id} is {'no longer' if before.is_pinned else 'not'} pinned."
        case Verb.SHARE:
            return f"#{after.id} is shared already; its files are kept."
        case Verb.UNSHARE if before.is_shared:
            return f"#{after.id} is no longer shared. Its picture goes with the [Unshare] button below it."
        case Verb.UNSHARE:
            return f"#{after.id} is not shared."


def stop_answer(verb: Verb, before: Job, after: Job) -> str:
    """What came of a cancel, a pause, or an early end."""
    name = f"#{after.id}"
    if before.state.is_end:
        return f"{name} has already ended: {_state(before)}."
    if after.state is State.STOPPING:
        return _stopping_answer(verb, before, after)
    if after.state is State.CANCELLED:
        return f"⬛ {name} is cancelled; it no longer waits."
    if after.state is State.PAUSED:
        again = " already" if before.state is State.PAUSED else ""
        return f"⏸️ {name} is paused{again}. /job resume lets it go on."
    if verb is Verb.KEEP_BEST and after.stop_intent is StopIntent.KEEP_BEST:
        return f"🟠 {name} will test and export its best epoch as soon as there is room."
    return f"{name} goes on: {_state(after)}."


def _stopping_answer(verb: Verb, before: Job, after: Job) -> str:
    name = f"#{after.id}"
    if before.state is State.STOPPING and before.stop_intent == after.stop_intent:
        return f"{name} is already {_state(after)}."
    match after.stop_intent:
        case StopIntent.KEEP_BEST:
            return f"🟠 {name} stops here; its best epoch is tested and exported."
        case StopIntent.PAUSE:
            return f"🟠 {name} pauses after this step and keeps its checkpoint; its GPU is free then."
        case _:
            return f"🟠 {name} stops after this step and keeps its checkpoint."


def _again_answer(verb: Verb, before: Job, after: Job, place: int | None) -> str:
    name = f"#{after.id}"
    if before.state is after.state:
        needed = "paused" if verb is Verb.RESUME else "failed or cancelled"
        return f"{name} is not {needed}: {_state(after)}."
    line = f", {ordinal(place)} in line" if place else ""
    kept = "from its checkpoint" if after.progress.epochs else "from its start"
    word = "goes on" if verb is Verb.RESUME else "is tried again"
    return f"🕓 {name} {word} {kept}{line}."


def _state(job: Job) -> str:
    words = state_words(job)[1]
    return words[:1].lower() + words[1:]


def shared_post(job: Job, standing: Standing, sampled: Sampled | None) -> MessageContent | None:
    """The newest samples for the whole channel, with credit, prompts and seeds; None where there are none to show."""
    if sampled is None:
        return None
    file = FileToSend(path=standing.job_dir / sampled.sheet, name=f"shared-{job.id}-e{sampled.epoch}.png")
    if not sendable([file], standing.file_limit):
        return None
    when = "the base model" if sampled.epoch == 0 else f"epoch {sampled.epoch} of {job.spec.training.epochs}"
    prompts = "\n".join(
        f"-# {number}. {plain(sample.prompt, 200)} · seed {sample.seed}"
        for number, sample in enumerate(sampled.samples, start=1)
    )
    title = f"🖼️ **{plain(job.name)}** by <@{job.owner_id}> · #{job.id}, {when} · {plain(job.dataset_name, 60)}"
    body = layout(title, picture(file, samples_alt(sampled)), prompts, row(button(job.id, Verb.UNSHARE, "Unshare")))
    return MessageContent(layout=body, files=(file,), is_silent=True)


def no_samples(job: Job) -> MessageContent:
    return said(f"#{job.id} has no samples that could be shown here yet; nothing was shared.")
