"""The card of a job, its posts, and the answers to its owner."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from discord import ui

from bot.errors import DuplicateJob
from bot.outbox import HoldReason, Notification, NotificationKind, Undelivered, UndeliveredReason
from bot.queue import Draft
from bot.queue.domain.job import EndReason, EndReasonKind, Job, Priority, State, StopIntent
from bot.queue.domain.job_progress import Progress
from bot.queue.domain.verbs import Verb, is_applicable
from bot.queue.store.queue_control import PauseKind, QueuePause
from bot.ui.job_card import job_card, share_done, time_left
from bot.ui.job_context import StartForecast
from bot.ui.job_endings import cancelled_post, done_post, failed_post
from bot.ui.job_posts import (
    base_post,
    early_stop_post,
    epoch_post,
    files_reply,
    lost_post,
    paused_post,
    stage_post,
    undelivered_post,
    warning_post,
)
from bot.ui.job_replies import (
    compare_reply,
    details_reply,
    duplicate_notice,
    log_reply,
    note_reply,
    receipt,
    samples_reply,
    stop_question,
    verb_reply,
)
from bot.ui.layout import MessageContent, text_form
from bot.ui.remedies import remedy_buttons, smaller_side
from tests.bot.ui.examples import (
    NOW,
    OWNER,
    context,
    epoch_ended,
    exported,
    finding,
    finished,
    image,
    job,
    progress,
    report,
    sampled,
    step_done,
    validation,
)
from tests.bot.ui.rendering import alt_texts, buttons, check_messages, file_names, text_of, verbs
from trainer.protocol import events
from trainer.protocol.bucket_shapes import fit_images
from trainer.protocol.events import (
    BandLoss,
    BaseValidated,
    Event,
    Exported,
    Failed,
    FailureKind,
    Phase,
    StageBegan,
    Stopped,
    StoppedEarly,
    TrainedPart,
    Warned,
)
from trainer.protocol.report import FindingKind
from trainer.protocol.spec import make_spec
from trainer.protocol.text import speaking

GOLDEN = Path(__file__).parent / "golden"
LATER = NOW + timedelta(minutes=35)
PAUSE = QueuePause(kind=PauseKind.PAUSE, by=7, at=NOW, why="driver update")
FAILED = Failed(seq=1, time=0, kind=FailureKind.OUT_OF_MEMORY, message="Out of memory at step 12.", hint="Use rank 8.")


def queued(**changes: Any) -> Job:
    return job(**{"state": State.QUEUED, "attempt": 0, "progress": progress(0, step=None, base=None), **changes})


# -- the card -----------------------------------------------------------------------------------------------------


def test_the_card_of_each_state(job_dir: Path) -> None:
    better_before = (epoch_ended(1, 0.88, best_epoch=1), epoch_ended(2, 0.91, best_epoch=1))
    died = EndReason(kind=EndReasonKind.PROCESS_DIED, attempt=3, max_attempts=3, epoch=4, kept_epoch=3)
    jobs = {
        "running": job(),
        "running, the best epoch is not the last": job(progress=progress(epochs=better_before)),
        "running again, unusual": job(slots=("GPU 0 · RTX 4090",), attempt=2, priority=Priority.LOW),
        "drawing samples": job(progress=progress(phase=Phase.SAMPLING, phase_done=3, phase_total=8)),
        "looking for memorized images": job(progress=progress(phase=Phase.DIAGNOSING)),
        "exporting": job(progress=progress(phase=Phase.EXPORTING, phase_done=2, phase_total=3)),
        "preparing": job(state=State.PREPARING, progress=progress(0, step=None, phase=None)),
        "queued": queued(),
        "queued again": job(state=State.QUEUED),
        "queued again, without a checkpoint": job(state=State.QUEUED, progress=progress(0, step=None)),
        "queued to export": job(state=State.QUEUED, stop_intent=StopIntent.KEEP_BEST),
        "stopping, to cancel": job(state=State.STOPPING, stop_intent=StopIntent.CANCEL),
        "stopping, to keep the best": job(state=State.STOPPING, stop_intent=StopIntent.KEEP_BEST),
        "stopping, to pause": job(state=State.STOPPING, stop_intent=StopIntent.PAUSE),
        "stopping, to requeue": job(state=State.STOPPING, stop_intent=StopIntent.REQUEUE),
        "paused": job(state=State.PAUSED, stopped_by=7),
        "paused in its first epoch": job(
            state=State.PAUSED,
            stopped_by=7,
            progress=progress(0),
            terminal_event=Stopped(seq=1, time=0, epoch=1, step=5, checkpoint="checkpoints/step-5"),
        ),
        "with a note": job(note="for the @everyone poster"),
        "succeeded": job(state=State.SUCCEEDED, terminal_event=finished()),
        "succeeded, no better than the base": job(
            state=State.SUCCEEDED,
            terminal_event=finished(best_ratio=1.02),
            progress=progress(epochs=(epoch_ended(5, 1.02, best_epoch=5),)),
        ),
        "stopped": job(state=State.STOPPED, stopped_by=7),
        "failed": job(state=State.FAILED, end_reason=died),
        "cancelled": job(state=State.CANCELLED, stopped_by=7),
        "failed, files deleted": job(state=State.FAILED, are_files_deleted=True),
    }
    cards = {name: job_card(each, context(job_dir, position=2, since=NOW)) for name, each in jobs.items()}
    check_messages(GOLDEN / "job_cards.txt", cards, job_dir)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "samples details watch stop"),
        ({"state": State.SUCCEEDED}, "files samples details try_prompts"),
        ({"state": State.SUCCEEDED, "are_files_deleted": True}, "details"),
        ({"state": State.STOPPED}, "files samples details try_prompts"),
        ({"state": State.FAILED}, "retry samples details try_prompts"),
        ({"state": State.CANCELLED}, "retry samples details try_prompts"),
        ({"state": State.FAILED, "are_files_deleted": True}, "details"),
        ({"state": State.PAUSED}, "resume samples details cancel"),
        ({"state": State.QUEUED}, "samples details watch stop"),
        ({"state": State.PREPARING}, "samples details watch stop"),
        ({"state": State.STOPPING, "stop_intent": StopIntent.CANCEL}, "samples details watch"),
        ({"state": State.STOPPING, "stop_intent": StopIntent.PAUSE}, "samples details watch cancel"),
        ({"state": State.RUNNING, "stop_intent": StopIntent.KEEP_BEST}, "samples details watch cancel"),
    ],
)
def test_a_card_has_the_buttons_that_apply(job_dir: Path, changes: dict[str, Any], expected: str) -> None:
    card = job_card(job(**changes), context(job_dir))
    assert verbs(card) == expected.split()
    # One row on a phone: about 285 px, of which a letter takes 8 and a button 32 around them and 8 beside it.
    width = sum(8 * len(each.label or "xx") + 40 for each in buttons(card))
    assert width <= 330


#: A failure of each kind, and the buttons that can help against it: no retry where the next start would fail likewise.
REMEDIES = {
    FailureKind.BAD_SPEC: [],
    FailureKind.BAD_DATASET: [],
    FailureKind.MISSING_MODEL: ["retry"],
    FailureKind.OUT_OF_MEMORY: ["retry_px"],
    FailureKind.DEVICE_LOST: ["retry"],
    FailureKind.DIVERGED: ["retry_rate"],
    FailureKind.DISK_FULL: ["retry"],
    FailureKind.MISSING_LIBRARY: ["retry"],
    FailureKind.BAD_CHECKPOINT: [],
    FailureKind.BAD_EXPORT: [],
    FailureKind.BUG: ["retry"],
}


def test_a_failure_offers_only_what_can_help(job_dir: Path) -> None:
    for kind in FailureKind:
        failed = FAILED.model_copy(update={"kind": kind})
        ended = job(state=State.FAILED, terminal_event=failed)
        assert verbs(failed_post(ended, context(job_dir), failed, "")) == [*REMEDIES[kind], "details"], kind
        assert [each for each in verbs(job_card(ended, context(job_dir))) if "retry" in each] == REMEDIES[kind], kind


@pytest.mark.parametrize(("side", "smaller"), [(None, 512), (1024, 768), (512, 384), (256, None)])
def test_out_of_memory_offers_the_next_smaller_size(side: int | None, smaller: int | None) -> None:
    spec = make_spec({"name": "fox-lora", "dataset": "x", "training": {"resolution": side}})
    assert smaller_side(job(spec)) == smaller
    assert len(remedy_buttons(job(spec), FailureKind.OUT_OF_MEMORY)) == (smaller is not None)


def test_the_share_counts_time_and_grows_between_the_steps(job_dir: Path) -> None:
    later = NOW + timedelta(seconds=90)
    # 300 s of 900 s are over; 90 s later, of samples, 390 s are.
    assert [share_done(job(), NOW), share_done(job())] == [pytest.approx(1 / 3)] * 2
    assert share_done(job(progress=progress(phase=Phase.SAMPLING)), later) == pytest.approx(390 / 900)
    # Steps arrive each second: without them nothing grows.
    assert share_done(job(), later) == pytest.approx(1 / 3)
    assert share_done(job(progress=progress(phase=Phase.EXPORTING)), NOW + timedelta(days=1)) == 0.99
    unknown = progress(step=step_done(50, 5, eta_s=None))
    assert share_done(job(progress=unknown), NOW) == 0.5


def test_the_time_that_is_left_shrinks_and_never_ends_in_the_past() -> None:
    drawing = job(progress=progress(phase=Phase.SAMPLING), last_event_at=NOW + timedelta(minutes=5))
    left = [time_left(drawing, NOW + timedelta(minutes=minutes)) for minutes in (0, 5, 11)]
    assert left == ["about 10 min left", "about 5 min left", "almost done"]


def test_a_card_carries_the_chart_and_notifies_no_one(job_dir: Path) -> None:
    card = job_card(job(), context(job_dir))

    assert file_names(card) == ["loss-e3.png"]
    assert (card.is_silent, card.mentions) == (True, ())
    assert "epoch 3: training loss 0.0900, 15 % better than the base model" in (alt_texts(card)[0] or "")


def test_why_a_queued_job_waits(job_dir: Path) -> None:
    soon = StartForecast(starts_at=NOW + timedelta(seconds=0.5), seconds=290)
    known = StartForecast(starts_at=LATER, seconds=2880, usual_error=0.15)
    later = StartForecast(starts_at=LATER + timedelta(minutes=20), seconds=2880)
    passed = NOW - timedelta(minutes=1)
    cases: dict[str, tuple[Job, dict[str, Any]]] = {
        "only its turn": (queued(run_after=passed), {"owner_runs": 1, "owner_may_run": 2, "slots": 1}),
        "queue paused, with a forecast": (queued(), {"queue_pause": PAUSE, "forecast": known}),
        "delayed start": (queued(run_after=LATER), {}),
        "delayed start, as forecast": (queued(run_after=LATER), {"forecast": known}),
        "delayed start, forecast later": (queued(run_after=LATER), {"forecast": later}),
        "back-off": (queued(run_after=LATER, attempt=1), {}),
        "window closed": (queued(), {"why_closed": "The training window opens Mon 20:00 (UTC)."}),
        "owner's limit": (queued(), {"owner_runs": 2, "owner_may_run": 2}),
        "owner's limit of one": (queued(), {"owner_runs": 1, "owner_may_run": 1}),
        "several GPUs": (queued(gpus=4), {"free_slots": 1, "slots": 4}),
        "forecast": (queued(), {"forecast": known}),
        "starts now": (queued(), {"forecast": soon}),
        "priority": (queued(priority=Priority.HIGH), {}),
    }
    cards = {
        name: text_of(job_card(each, context(job_dir, position=1, **around))) for name, (each, around) in cases.items()
    }
    check_messages(GOLDEN / "waiting_cards.txt", cards, job_dir)


def warned(kind: str, message: str) -> Warned:
    return Warned(seq=1, time=0, kind=kind, message=message)


# -- posts --------------------------------------------------------------------------------------------------------


def test_the_posts_of_a_running_job(job_dir: Path) -> None:
    here = context(job_dir)
    history = progress(4)
    better_before = (epoch_ended(1, 0.88, best_epoch=1), epoch_ended(2, 0.91, best_epoch=1))
    memorizing = [each.model_copy(update={"gap": 0.2 * each.epoch}) for each in better_before]
    validated = BaseValidated(seq=1, time=0, validation=validation())
    classified = epoch_ended(3).model_copy(update={"gap": 0.04, "metrics": {"balanced_accuracy": 0.917}})
    early = StoppedEarly(
        seq=1, time=0, epoch=7, best_epoch=5, best_ratio=0.88, reason="The loss has not fallen.", epochs_saved=3,
        seconds_saved=870,
    )  # fmt: skip
    # Of the first block nothing is trained.
    parts = tuple(TrainedPart(name=f"unet.up_blocks.{n}", trainable=100 * n, total=1000) for n in range(11))
    began = StageBegan(
        seq=1, time=0, stage=2, name="deeper @everyone", first_epoch=4, last_epoch=9, learning_rate=1e-5,
        optimizer="lion", schedule="cosine", resolution=512, trainable_parameters=5500, parts=parts,
    )  # fmt: skip
    posts = {
        "base": base_post(job(), here, sampled(0), validated),
        "base, sheet too large": base_post(job(), context(job_dir, file_limit=10), sampled(0), validated),
        "epoch": epoch_post(job(progress=history), here, sampled(3, ("a red fox",)), history.epochs[:3]),
        "epoch of a classifier": epoch_post(job(), here, None, [classified]),
        "epochs, short ones": epoch_post(job(progress=history), here, sampled(3, ("a red fox",)), history.epochs, 3),
        "epoch, a later one is worse": epoch_post(job(), here, None, better_before),
        "epoch, memorizing": epoch_post(job(), here, None, memorizing),
        "epoch, worse than the base": epoch_post(job(), here, None, [epoch_ended(1, 1.08)]),
        "early stop": early_stop_post(job(), here, early),
        "stage": stage_post(job(), here, began),
        "warning": warning_post(job(), here, warned("mix_overlap", "Three captions are too long.")),
        "warning, it diverges": warning_post(job(), here, warned("diverging", "The learning rate is too high.")),
        "warning, memory": warning_post(job(), here, warned("micro_batch_halved", "It ran out of memory.")),
        "lost": lost_post(job(state=State.QUEUED), here, "The disk was full. It starts again."),
        "paused": paused_post(job(state=State.PAUSED, stopped_by=7), here, ""),
    }
    check_messages(GOLDEN / "job_posts.txt", posts, job_dir)
    assert all(post.is_silent and post.mentions == () for post in posts.values())
    assert file_names(posts["base, sheet too large"]) == []
    assert "unet.up_blocks.0" not in text_of(posts["stage"])


def test_the_posts_at_the_end_of_a_job(job_dir: Path) -> None:
    here = context(job_dir)
    spec = make_spec({"name": "fox-lora", "dataset": "x", "training": {"trigger": "mfox"}})
    real = make_spec({"name": "fox-lora", "dataset": "x", "base": {"source": "/models/sd15.safetensors"}})
    tested = events.Tested(seq=7, time=0, test=validation(0.9), base_loss=0.1)
    files = (exported(), finished())
    stopped = Stopped(seq=1, time=0, epoch=3, step=31, checkpoint="c")
    no_better = (exported(), finished(best_ratio=1.02, stopped_early=False))
    worse = progress(epochs=(epoch_ended(5, 1.02, best_epoch=5),))
    reported = finished(shared_report="report-shared.html")
    (job_dir / "report-shared.html").write_text("<html>")
    posts = {
        "done": done_post(job(state=State.SUCCEEDED, spec=spec), here, (tested, *files)),
        "done, with several files": done_post(
            job(state=State.SUCCEEDED, spec=real),
            here,
            (exported(), exported("diffusers", "output/b.safetensors", readers=["diffusers"]), reported),
        ),
        "done, no better than the base": done_post(job(state=State.SUCCEEDED, progress=worse), here, no_better),
        "done, ended early by a person": done_post(job(state=State.STOPPED, stopped_by=7), here, files),
        "failed": failed_post(job(state=State.FAILED), here, FAILED, ""),
        "failed, by the queue": failed_post(job(state=State.FAILED), here, None, "It died three times."),
        "cancelled": cancelled_post(job(state=State.CANCELLED, stopped_by=7), here, stopped),
        "cancelled in its first epoch": cancelled_post(
            job(state=State.CANCELLED, stopped_by=7, progress=progress(0)), here, stopped
        ),
        "cancelled before it started": cancelled_post(queued(state=State.CANCELLED), here, None),
    }
    check_messages(GOLDEN / "job_endings.txt", posts, job_dir)


def test_the_result_tells_layout_shapes_and_detail_of_the_best_epoch(job_dir: Path) -> None:
    progress = Progress()
    for epoch, best, ratios in ((1, 1, (0.9,) * 4), (2, 2, (0.5, 0.7, 0.8, 1.1)), (3, 2, (0.6,) * 4)):
        bands = tuple(BandLoss(first_timestep=0, last_timestep=1, loss=0.1, ratio=ratio) for ratio in ratios)
        measured = validation(0.8).model_copy(update={"bands": bands})
        ended = epoch_ended(epoch, best_epoch=best).model_copy(update={"validation": measured})
        progress = progress.after(ended)
    done = finished().model_copy(update={"best_epoch": 2, "best_ratio": 0.8})

    post = done_post(job(state=State.SUCCEEDED, progress=progress), context(job_dir), (exported(), done))

    assert "Where it learned: layout 10 % worse, shapes 25 % better, detail 50 % better." in text_of(post)


def test_the_result_carries_its_files_and_notifies_only_its_owner(job_dir: Path) -> None:
    post = done_post(job(state=State.SUCCEEDED), context(job_dir), (exported(), finished()))

    assert file_names(post) == ["fox-lora-base-and-best.png", "fox-lora-kohya.safetensors"]
    attached = [item.media.url for item in post.layout.walk_children() if isinstance(item, ui.File)]
    assert attached == ["attachment://fox-lora-kohya.safetensors"]
    assert dict(post.allowed_mentions.to_dict()) == {"parse": [], "users": [OWNER]}
    assert not post.is_silent


def test_weights_that_are_too_large_are_named_by_their_path(job_dir: Path) -> None:
    (job_dir / "output/a.safetensors").write_bytes(b"x" * 2000)

    post = done_post(job(state=State.SUCCEEDED), context(job_dir, file_limit=1000), (exported(), finished()))

    assert file_names(post) == ["fox-lora-base-and-best.png"]
    # Below the data folder: where that one is on the machine is not for members.
    assert "`jobs/42/output/a.safetensors`" in text_of(post)
    assert str(job_dir.parents[1]) not in text_of(post)


def test_each_kind_of_export_is_handed_over_with_how_to_load_it(job_dir: Path) -> None:
    full = {"method": {"kind": "full"}}
    inversion = {"method": {"kind": "textual_inversion"}, "training": {"trigger": "zork"}}
    dora, both = {"method": {"kind": "dora"}}, ["text_encoder", "text_encoder_2"]
    cases: dict[str, tuple[dict[str, Any], Exported]] = {
        "LoRA": ({}, exported(readers=["A1111", "Forge", "ComfyUI", "diffusers", "kohya sd-scripts", "LyCORIS"])),
        "LoRA for diffusers": ({}, exported("diffusers", readers=["diffusers"])),
        "LoRA of SD 3": ({}, exported(readers=["ComfyUI"], modules=["transformer"])),
        "DoRA": (dora, exported(readers=["LyCORIS"])),
        "DoRA, differences": (dora, exported("difference", readers=["A1111", "Forge", "ComfyUI", "LyCORIS"])),
        "(IA)³": ({"method": {"kind": "ia3"}}, exported(readers=["A1111"])),
        "embedding": (inversion, exported("embedding", "output/zork.safetensors", modules=both[:1], token="zork")),
        "embedding of SDXL": (inversion, exported("embedding", "output/zork.safetensors", modules=both, token="z`k")),
        "checkpoint": (full, exported("checkpoint", readers=["A1111", "Forge", "ComfyUI"], modules=[])),
        "full model": (full, exported("diffusers", "output/diffusers", readers=["diffusers"], modules=[])),
        "LoHa": (
            {"method": {"kind": "loha"}},
            exported("diffusers", "output/diffusers", readers=["peft"], modules=["text_encoder", "unet"]),
        ),
        "classifier": (
            {**full, "task": "classification"},
            exported("transformers", "output/classifier", readers=["transformers"], modules=[]),
        ),
    }
    posts = {}
    for name, (settings, event) in cases.items():
        spec = make_spec({"name": "fox-lora", "dataset": "x", **settings})
        posts[name] = done_post(job(spec=spec), context(job_dir), (event, finished()))
    check_messages(GOLDEN / "exports.txt", posts, job_dir)


def test_the_files_of_a_job_are_handed_over_in_as_many_messages_as_they_need(
    job_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job_dir / "output/b.safetensors").write_bytes(b"x" * 400)
    (job_dir / "output/a.safetensors").write_bytes(b"x" * 400)
    monkeypatch.setattr("bot.ui.layout.MAX_REQUEST_BYTES", 500)
    done = job(state=State.SUCCEEDED)
    # Exported twice: the attempt that did it first was lost.
    exports = (exported("diffusers"), exported(), exported("diffusers", "output/b.safetensors"), finished())
    sent = files_reply(done, context(job_dir), exports)
    assert [file_names(each) for each in sent] == [["fox-lora-diffusers.safetensors"], ["fox-lora-kohya.safetensors"]]
    small = context(job_dir, file_limit=300)
    posts = {
        "two messages, 1": sent[0],
        "two messages, 2": sent[1],
        "too large": files_reply(done, small, exports)[0],
        "still running": files_reply(job(state=State.RUNNING), small, exports)[0],
        "nothing was exported": files_reply(done, small, ())[0],
    }
    check_messages(GOLDEN / "files_reply.txt", posts, job_dir)


def test_the_files_of_epochs_are_named_in_the_result_and_handed_over_on_demand(job_dir: Path) -> None:
    (job_dir / "output/epochs").mkdir()
    events: list[Event] = [exported()]
    for epoch in (2, 4, 6):
        path = f"output/epochs/fox-lora-{epoch:06d}.safetensors"
        events.append(exported("kohya", path, epoch=epoch, max_difference=None))
        # The first one was deleted: so many are not kept.
        if epoch > 2:
            (job_dir / path).write_bytes(b"x" * 300 * epoch)
    done, here = job(state=State.SUCCEEDED), context(job_dir, file_limit=1500)

    post = done_post(done, here, (*events, finished()))
    sent = files_reply(done, here, (*events, finished()))

    assert file_names(post) == ["fox-lora-base-and-best.png", "fox-lora-kohya.safetensors"]
    assert [file_names(each) for each in sent] == [["fox-lora-kohya.safetensors", "fox-lora-000004.safetensors"]]
    check_messages(GOLDEN / "epoch_files.txt", {"result": post, "/job files": sent[0]}, job_dir)


def test_what_could_not_be_posted_is_told_elsewhere() -> None:
    def notice(
        reason: UndeliveredReason, kind: NotificationKind | None, hold: HoldReason | None = None
    ) -> Notification:
        about = Undelivered(reason=reason, channel_id=100, kind=kind, hold=hold)
        return Notification(
            kind=NotificationKind.UNDELIVERED, job_id=42, owner_id=OWNER, undelivered=about, detail="Ready now."
        )

    done, failed, upload = NotificationKind.DONE, NotificationKind.FAILED, NotificationKind.ANSWER
    held, gone = UndeliveredReason.HELD, UndeliveredReason.GONE
    notices = {
        "a result, no permission": notice(held, done, HoldReason.NO_PERMISSION),
        "a failure, archived": notice(held, failed, HoldReason.ARCHIVED),
        "anything, locked": notice(held, None, HoldReason.LOCKED),
        "a result, deleted channel": notice(gone, done),
        "an upload, no access": notice(held, upload, HoldReason.NO_ACCESS),
        "a result, refused": notice(UndeliveredReason.FAILED, done),
    }
    posts = {name: undelivered_post(each, None if "upload" in name else job()) for name, each in notices.items()}
    check_messages(GOLDEN / "undelivered.txt", posts)


def test_the_text_form_ends_with_the_hint_and_fits(job_dir: Path) -> None:
    post = failed_post(job(state=State.FAILED), context(job_dir), FAILED, "x" * 5000)
    text = text_form(post, "`/job status id:42` shows it.").text
    assert len(text) <= 2000
    assert text.splitlines()[-1] == "`/job status id:42` shows it."


# -- answers ------------------------------------------------------------------------------------------------------


def test_the_receipt_of_a_queued_job(job_dir: Path) -> None:
    found = report(
        image(1),
        image(2, finding(FindingKind.CORRUPT, "dropped"), status="dropped"),
        image(3, finding(FindingKind.EXACT_DUPLICATE, "dropped", message="copy of fox.zip!1.png"), status="dropped"),
        image(4, finding(FindingKind.EXACT_DUPLICATE, "dropped"), status="dropped"),
    )
    known = StartForecast(starts_at=LATER, seconds=2880)
    unusual = queued(gpus=2, priority=Priority.LOW)
    receipts = {
        "with skipped images": receipt(queued(), context(job_dir, position=2), found),
        "with small images": receipt(
            queued(),
            context(job_dir),
            report(*(image(n, width=n * 100, height=600) for n in (2, 6, 9))),
            fit_images([(200, 600), (600, 600), (900, 600)], 512),
        ),
        "with options": receipt(unusual, context(job_dir, slots=2, free_slots=2, forecast=known), report(image(1))),
    }
    check_messages(GOLDEN / "receipts.txt", receipts, job_dir)


def test_details_and_what_follows_a_press(job_dir: Path) -> None:
    here = context(job_dir)
    (job_dir / "trainer.log").write_text("x")
    long = job(progress=progress(step=step_done(35, 4, elapsed_s=2040)))
    replies: dict[str, MessageContent | str] = {
        "details": details_reply(job(slots=("GPU 0 · RTX 4090",)), here),
        "details of a queued job": details_reply(queued(), here),
        "stop": stop_question(long, NOW),
        "stop a queued job": stop_question(queued(), NOW),
        "stop, ended meanwhile": stop_question(job(state=State.FAILED), NOW),
        "compare": compare_reply(job(), here, [sampled(0), sampled(3)]),
        "compare, no samples": compare_reply(job(), here, []),
        "log": log_reply(job(), "step 1\n```\nstep 2"),
        "log, none": log_reply(job(), ""),
        "note": note_reply(job(note="for the poster")),
        "note, removed": note_reply(job()),
    }
    check_messages(GOLDEN / "job_replies.txt", replies, job_dir)


def test_samples_for_one_person(job_dir: Path) -> None:
    here = context(job_dir)
    replies = {
        "reply": samples_reply(job(), here, sampled(3, ("a red fox",))),
        "reply, of the base": samples_reply(job(), here, sampled(0)),
        "reply, none yet": samples_reply(job(), here, None),
    }
    check_messages(GOLDEN / "samples.txt", replies, job_dir)


def test_the_answer_to_each_verb() -> None:
    stopping, state, new = {"state": State.STOPPING}, State, {"progress": progress(0, step=None)}
    cases: list[tuple[Verb, dict[str, Any], dict[str, Any]]] = [
        (Verb.PAUSE, {}, {**stopping, "stop_intent": StopIntent.PAUSE}),
        (Verb.PAUSE, {"state": state.QUEUED}, {"state": state.PAUSED}),
        (Verb.PAUSE, {"state": state.PAUSED}, {"state": state.PAUSED}),
        (Verb.PAUSE, {"state": state.FAILED}, {"state": state.FAILED}),
        (Verb.KEEP_BEST, {}, {**stopping, "stop_intent": StopIntent.KEEP_BEST}),
        (Verb.KEEP_BEST, {"state": state.PAUSED}, {"state": state.QUEUED, "stop_intent": StopIntent.KEEP_BEST}),
        (Verb.CANCEL, {}, {**stopping, "stop_intent": StopIntent.CANCEL}),
        (Verb.CANCEL, {"state": state.QUEUED}, {"state": state.CANCELLED}),
        (Verb.CANCEL, {**stopping, "stop_intent": StopIntent.CANCEL}, {**stopping, "stop_intent": StopIntent.CANCEL}),
        (Verb.CANCEL, {**stopping, "stop_intent": StopIntent.PAUSE}, {**stopping, "stop_intent": StopIntent.CANCEL}),
        (Verb.RESUME, {"state": state.PAUSED}, {"state": state.QUEUED}),
        (Verb.RESUME, {"state": state.RUNNING}, {"state": state.RUNNING}),
        (Verb.RETRY, {"state": state.FAILED}, {"state": state.QUEUED}),
        (Verb.RETRY, {"state": state.FAILED, **new}, {"state": state.QUEUED, **new}),
        (Verb.RETRY, {"state": state.SUCCEEDED}, {"state": state.SUCCEEDED}),
        (Verb.EXTEND, {"state": state.SUCCEEDED}, {"state": state.QUEUED, "round": 2}),
        (Verb.EXTEND, {"state": state.RUNNING}, {"state": state.RUNNING}),
        (Verb.EXTEND, {"state": state.SUCCEEDED, "study": "{}"}, {"state": state.SUCCEEDED, "study": "{}"}),
        (Verb.PIN, {}, {"is_pinned": True}),
        (Verb.PIN, {"is_pinned": True}, {"is_pinned": True}),
        (Verb.UNPIN, {"is_pinned": True}, {}),
        (Verb.UNPIN, {}, {}),
        (Verb.UNSHARE, {}, {}),
    ]
    replies = {}
    for number, (verb, before, after) in enumerate(cases, start=1):
        name = f"{number}. {verb} of a job that is {job(**before).state}"
        replies[name] = verb_reply(verb, job(**before), job(**after), 1)
    check_messages(GOLDEN / "verb_replies.txt", replies)


def test_every_verb_applies_to_some_jobs_and_not_to_all() -> None:
    jobs = [job(state=state, is_pinned=pinned, is_shared=pinned) for state in State for pinned in (False, True)]
    for verb in Verb:
        assert {is_applicable(verb, each) for each in jobs} == {True, False}, verb


@pytest.mark.parametrize("state", State)
def test_the_state_of_a_duplicate_is_in_the_language_of_the_reader(state: State) -> None:
    ids = {"id": 1, "interaction_id": 2, "guild_id": 3, "channel_id": 4, "owner_id": OWNER, "dataset_id": 5}
    draft = Draft(**ids, request="{}", job_id=None, created_at=NOW)
    with speaking("zh_CN"):
        assert re.findall("[a-z]{3,}", text_of(duplicate_notice(DuplicateJob(job_id=42, state=state), draft))) == []
