"""Layouts say the truth, call nobody by accident, and stay within Discord's limits whatever stands in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from discord import ui

from bot.outbox.notice import Notice, NoticeKind
from bot.queue.domain.job import Job, State, StopIntent
from bot.queue.store.attempts import Attempt
from bot.queue.store.audit import Entry
from bot.queue.store.queue_control import Halt, HaltKind
from bot.queue.store.slots import Slot
from bot.ui.admin import slots_page
from bot.ui.answers import shared_post
from bot.ui.audit import audit_page, history
from bot.ui.board import Scene, board, job_list
from bot.ui.card import card
from bot.ui.endings import cancelled_post, done_post, failed_post
from bot.ui.layout import MAX_BYTES, MAX_CHARACTERS, MAX_PARTS, FileToSend, MessageContent, layout, picture, weight
from bot.ui.news import news_post
from bot.ui.posts import base_post, early_stop_post, epoch_post, lost_post, paused_post, stage_post, warning_post
from bot.ui.receipts import receipt
from bot.ui.standing import Standing
from tests.bot.ui.examples import NOW, OWNER, epoch_ended, job, progress, sampled, step_done, validation
from trainer.protocol import events as said
from trainer.protocol.events import (
    BaseValidated,
    Exported,
    Failed,
    FailureKind,
    Finished,
    Phase,
    StageBegan,
    Stopped,
    StoppedEarly,
    TrainedPart,
)
from trainer.protocol.report import Counts, DatasetReport, Finding, FindingKind, Image, RefusalKind, Refused
from trainer.protocol.spec import make_spec

LIMIT = 10 * 1024 * 1024
HOSTILE = "@everyone <@1> <@&2> <#3> **bold** [x](https://evil.example) `code` \n# big ‮ 🜲🜲🜲 " * 20


def text_of(content: MessageContent) -> str:
    return "\n".join(item.content for item in content.layout.walk_children() if isinstance(item, ui.TextDisplay))


def labels(content: MessageContent) -> list[str | None]:
    return [item.label for item in content.layout.walk_children() if isinstance(item, ui.Button)] + [
        item.item.label for item in content.layout.walk_children() if isinstance(item, ui.DynamicItem)
    ]


def alt_texts(content: MessageContent) -> list[str | None]:
    galleries = [item for item in content.layout.walk_children() if isinstance(item, ui.MediaGallery)]
    return [item.description for gallery in galleries for item in gallery.items]


def standing(folder: Path, place: int | None = None, limit: int = LIMIT) -> Standing:
    return Standing(job_dir=folder, now=NOW, place=place, file_limit=limit, marker="3fa8c1d2")


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    for name in (
        "charts/loss.png",
        "samples/e0/sheet.png",
        "samples/e3/sheet.png",
        "output/cmp.png",
        "output/a.safetensors",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
    return tmp_path


def test_a_training_card_has_bar_numbers_chart_and_buttons(job_dir: Path) -> None:
    content = card(job(), standing(job_dir))
    text = text_of(content)
    assert "🟢 #42 fox-lora · <@555>" in text
    assert "▰▰▰▰▰" in text
    assert "**35%** · epoch 4/10 · step 35/100" in text
    assert "loss 0.0841 ▼ · val 0.85× base ★ best" in text
    assert "2.4 steps/s · 19.0 GiB of memory · ends <t:1772367000:R>" in text
    assert "job 42·a1" in text
    assert "e3 train 0.0900, val 0.85×" in (alt_texts(content)[0] or "")
    assert labels(content) == ["Cancel", "Pause", "Stop & keep best", "Samples", "Refresh"]
    assert [file.name for file in content.files] == ["loss-e3.png"]
    assert content.is_silent
    assert content.mentions is None


def test_the_best_epoch_is_named_where_it_is_not_the_last(job_dir: Path) -> None:
    epochs = (epoch_ended(1, 0.88, best_epoch=1), epoch_ended(2, 0.91, best_epoch=1))
    content = card(job(progress=progress(epoch=epochs[-1], epochs=epochs)), standing(job_dir))
    assert "val 0.91× base (best 0.88× @ e1)" in text_of(content)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state": State.QUEUED, "progress": progress(0, step=None, base=None), "attempt": 0}, "Queued · 2nd in line"),
        ({"state": State.QUEUED}, "Waiting to go on from its checkpoint"),
        ({"state": State.QUEUED, "progress": progress(0, step=None)}, "Waiting to begin again"),
        ({"state": State.QUEUED, "stop_intent": StopIntent.KEEP_BEST}, "Waiting to test and export its best epoch"),
        ({"state": State.PREPARING, "progress": progress(0, step=None, phase=None)}, "**Starting**"),
        ({"state": State.PAUSED, "stopped_by": 7}, "Paused by <@7>; its GPU is free."),
        ({"state": State.STOPPED, "stopped_by": 7}, "**Done, ended early by a person**"),
        ({"state": State.STOPPED, "stopped_by": 7}, "ended early by <@7>; its best epoch was kept"),
        ({"state": State.STOPPING, "stop_intent": StopIntent.PAUSE}, "**Pausing**"),
        ({"state": State.STOPPING, "stop_intent": StopIntent.REQUEUE}, "**Making room, to go on later**"),
        ({"progress": progress(phase=Phase.EXPORTING)}, "Exporting"),
        ({"state": State.STOPPING, "stop_intent": StopIntent.KEEP_BEST}, "Stopping, keeping the best epoch"),
        ({"state": State.STOPPING, "stop_intent": StopIntent.CANCEL}, "**Stopping**"),
        ({"state": State.SUCCEEDED}, "**Done**"),
        ({"state": State.FAILED, "end_reason": "It died three times."}, "It died three times."),
        ({"state": State.CANCELLED}, "**Cancelled**"),
    ],
)
def test_each_state_has_its_word(job_dir: Path, changes: dict[str, object], expected: str) -> None:
    assert expected in text_of(card(job(**changes), standing(job_dir, place=2)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state": State.SUCCEEDED}, ["Samples"]),
        ({"state": State.STOPPED}, ["Samples"]),
        ({"state": State.FAILED}, ["Retry", "Samples"]),
        ({"state": State.CANCELLED}, ["Retry", "Samples"]),
        ({"state": State.FAILED, "are_files_deleted": True}, []),
        ({"state": State.PAUSED}, ["Resume", "Cancel", "Samples", "Refresh"]),
        ({"state": State.QUEUED}, ["Cancel", "Pause", "Samples", "Refresh"]),
        ({"state": State.PREPARING}, ["Cancel", "Pause", "Samples", "Refresh"]),
        ({"state": State.STOPPING, "stop_intent": StopIntent.CANCEL}, ["Samples", "Refresh"]),
        ({"state": State.STOPPING, "stop_intent": StopIntent.PAUSE}, ["Cancel", "Samples", "Refresh"]),
        ({"state": State.RUNNING, "stop_intent": StopIntent.KEEP_BEST}, ["Cancel", "Samples", "Refresh"]),
    ],
)
def test_a_card_offers_what_makes_sense(job_dir: Path, changes: dict[str, object], expected: list[str]) -> None:
    assert labels(card(job(**changes), standing(job_dir))) == expected


def test_the_paused_and_the_lost_say_what_becomes_of_the_job(job_dir: Path) -> None:
    paused = paused_post(job(state=State.PAUSED, stopped_by=7), standing(job_dir), "")
    assert "Paused by <@7>; its GPU is free. It goes on from the checkpoint of epoch 3." in text_of(paused)
    assert labels(paused) == ["Resume", "Cancel"]
    lost = lost_post(job(state=State.QUEUED), standing(job_dir), "#42 failed: the disk was full. It begins again.")
    assert "🔌 **#42 fox-lora** · failed: the disk was full. It begins again." in text_of(lost)


def test_shared_samples_have_credit_prompts_and_seeds(job_dir: Path) -> None:
    content = shared_post(job(), standing(job_dir), sampled(3, ("a red fox",)))
    assert content is not None
    text = text_of(content)
    assert "**fox-lora** by <@555> · #42, epoch 3 of 10" in text
    assert "1. a red fox · seed 1234" in text
    assert dict(content.allowed_mentions.to_dict()) == {"parse": []}
    assert labels(content) == ["Unshare"]
    assert shared_post(job(), standing(job_dir), None) is None


def test_an_epoch_post_is_one_line_and_one_sheet_with_words(job_dir: Path) -> None:
    history = progress(4)
    content = epoch_post(job(progress=history), standing(job_dir), sampled(3, ("a red fox",)), history.epochs[2])
    text = text_of(content)
    assert text.splitlines()[1:] == ["-# job 42·a1 · 3fa8c1d2"]
    assert "epoch 3/10** · loss 0.0900 ▬ · val 0.85× base ★ best · 4 min 51 s · █▅▁" in text
    assert alt_texts(content) == ["Epoch 3, 1 sample: 1. “a red fox” (seed 1234)"]
    assert content.is_silent


def test_a_sheet_too_large_is_named_instead(job_dir: Path) -> None:
    content = base_post(
        job(), standing(job_dir, limit=10), sampled(0), BaseValidated(seq=1, time=0, validation=validation())
    )
    assert content.files == ()
    assert "larger than this server takes" in text_of(content)


def finished(**changes: object) -> Finished:
    known = {
        "seq": 9, "time": 0, "epochs": 7, "best_epoch": 5, "stopped_early": True, "base_loss": 0.1, "best_loss": 0.088,
        "best_ratio": 0.88, "seconds": 720, "comparison": "output/cmp.png", "comparison_alt": "base left, best right",
    }  # fmt: skip
    return Finished.model_validate({**known, **changes})


def exported(kind: str = "kohya", path: str = "output/a.safetensors") -> Exported:
    known = {"seq": 8, "time": 0, "format": kind, "path": path, "bytes": 100, "sha256": "0", "max_difference": 0.0}
    return Exported.model_validate(known)


def test_the_result_calls_its_owner_and_nobody_else(job_dir: Path) -> None:
    spec = make_spec({"name": "fox-lora", "dataset": "x", "training": {"trigger": "mfox"}})
    tested = said.Tested(seq=7, time=0, test=validation(0.9), base_loss=0.1)
    content = done_post(job(state=State.SUCCEEDED, spec=spec), standing(job_dir), (tested, exported(), finished()))
    text = text_of(content)
    assert "0.88× the base's" in text
    assert "best epoch 5 of 7 (early stop), in 12 min" in text
    assert "0.0900 instead of 0.1000" in text
    assert "<lora:fox-lora-kohya:1>" in text
    assert "**mfox**" in text
    assert [file.name for file in content.files] == ["fox-lora-base-and-best.png", "fox-lora-kohya.safetensors"]
    assert [item.media.url for item in content.layout.walk_children() if isinstance(item, ui.File)] == [
        "attachment://fox-lora-kohya.safetensors"
    ]
    assert dict(content.allowed_mentions.to_dict()) == {"parse": [], "users": [OWNER]}
    assert not content.is_silent


def test_a_result_that_is_no_better_than_the_base_says_so(job_dir: Path) -> None:
    content = done_post(job(state=State.SUCCEEDED), standing(job_dir), (exported(), finished(best_ratio=1.02)))
    assert "That is no better than the base" in text_of(content)


def test_weights_too_large_are_named_by_their_place(job_dir: Path) -> None:
    (job_dir / "output/a.safetensors").write_bytes(b"x" * 2000)
    content = done_post(job(state=State.SUCCEEDED), standing(job_dir, limit=1000), (exported(), finished()))
    assert [file.name for file in content.files] == ["fox-lora-base-and-best.png"]
    assert f"Too large to send here (100 B); it lies in `{job_dir}/output/a.safetensors`" in text_of(content)


def test_a_failure_says_what_and_what_to_do(job_dir: Path) -> None:
    failed = Failed(
        seq=1, time=0, kind=FailureKind.OUT_OF_MEMORY, message="Out of memory at step 12.", hint="Use rank 8."
    )
    content = failed_post(job(state=State.FAILED), standing(job_dir), failed, "")
    assert "Out of memory at step 12." in text_of(content)
    assert "→ Use rank 8." in text_of(content)
    assert labels(content) == ["Retry"]
    assert content.mentions == OWNER


def test_a_result_that_a_person_wanted_early_says_who(job_dir: Path) -> None:
    content = done_post(job(state=State.STOPPED, stopped_by=7), standing(job_dir), (exported(), finished()))
    assert "It was ended early by <@7>." in text_of(content)


def test_a_cancelled_job_says_by_whom_and_what_is_left(job_dir: Path) -> None:
    content = cancelled_post(
        job(state=State.CANCELLED, stopped_by=7),
        standing(job_dir),
        Stopped(seq=1, time=0, epoch=3, step=31, checkpoint="c"),
    )
    assert "cancelled by <@7>. It had reached epoch 3, step 31" in text_of(content)


def report(images: tuple[Image, ...], refused: tuple[Refused, ...] = ()) -> DatasetReport:
    kept = sum(image.status == "kept" for image in images)
    counts = Counts(
        images=len(images), kept=kept, dropped=len(images) - kept, refused=len(refused), train=kept, validation=0,
        test=0, captioned=kept,
    )  # fmt: skip
    return DatasetReport(
        digest="d", input_digest="i", counts=counts, summary="", images=images, refused=refused, resolution=64
    )


def dropped(source: str, kind: FindingKind, message: str = "why") -> Image:
    return Image(source=source, status="dropped", findings=(Finding(kind=kind, action="dropped", message=message),))


def test_the_receipt_names_place_split_and_what_was_skipped(job_dir: Path) -> None:
    found = report(
        (
            Image(source="a.zip!1.png", status="kept"),
            dropped("a.zip!2.png", FindingKind.CORRUPT),
            dropped("a.zip!3.png", FindingKind.EXACT_DUPLICATE, "the same picture as a.zip!1.png"),
            dropped("a.zip!4.png", FindingKind.EXACT_DUPLICATE),
        )
    )
    text = text_of(receipt(job(state=State.QUEUED), standing(job_dir, 2), found))
    assert "✅ **Queued #42 “fox-lora”** · 2nd in line" in text
    assert (
        "1 image, 3 skipped (2 exact duplicates, 1 corrupt), all captioned · split 1 train / 0 validation / 0 test"
        in text
    )
    assert "skipped 2.png: why" in text
    assert "skipped 3.png: the same picture as 1.png" in text


def crowded(worst: Job, where: Standing) -> list[MessageContent]:
    """Lists as long as they can be, of the worst."""
    queued = dataclasses.replace(worst, state=State.QUEUED)
    halt = Halt(kind=HaltKind.DRAIN, by=7, at=NOW, why=HOSTILE)
    slots = [Slot(id=str(n), device="", name=HOSTILE, job_id=n) for n in range(64)]
    paused = dataclasses.replace(worst, state=State.PAUSED)
    entry = Entry(at=NOW, job_id=1, actor_id=OWNER, verb=HOSTILE, before="a", after=HOSTILE, why=HOSTILE)
    attempt = Attempt(number=1, started_at=NOW, ended_at=NOW, slots=(HOSTILE,), outcome="failed", why=HOSTILE)
    found = [
        board(
            Scene(
                now=NOW,
                jobs=[worst] * 9 + [queued] * 300 + [paused] * 50,
                slots=slots,
                halt=halt,
                why_closed=HOSTILE,
            )
        ),
        job_list("Newest", [worst] * 300, NOW),
        card(dataclasses.replace(queued, slots=(HOSTILE,) * 9), dataclasses.replace(where, halt=halt)),
        card(queued, dataclasses.replace(where, why_closed=HOSTILE)),
        audit_page("Audit", [entry] * 99),
        history(worst, [attempt] * 99, [entry] * 99),
        slots_page(slots, "Said."),
        lost_post(worst, where, HOSTILE * 20),
        paused_post(paused, where, HOSTILE),
        news_post(Notice(kind=NoticeKind.NEWS, job_id=0, detail="long " * 3000), "3fa8c1d2"),
    ]
    for content in found:
        for item in content.layout.walk_children():
            if isinstance(item, ui.TextDisplay):
                item.content = item.content.replace("<@7>", "")
    return found


def everything(folder: Path) -> list[MessageContent]:
    """Each layout with the worst that it can be given."""
    spec = make_spec(
        {"name": "x" * 40, "dataset": "x", "preset": HOSTILE[:60], "base": {"source": HOSTILE[:500]},
         "training": {"epochs": 1000, "trigger": HOSTILE[:50]}}
    )  # fmt: skip
    worst = job(
        spec=spec,
        dataset_name=HOSTILE,
        progress=progress(1000, 1000, step=step_done(10**9, 1000)),
        end_reason=HOSTILE,
    )
    prompts = tuple(HOSTILE[:500].strip() for _ in range(8))
    found = report(
        tuple(dropped(HOSTILE + str(n), FindingKind.CORRUPT, HOSTILE) for n in range(3000)),
        tuple(Refused(source=HOSTILE, kind=RefusalKind.LINK, reason=HOSTILE) for _ in range(300)),
    )
    failed = Failed(seq=1, time=0, kind=FailureKind.BUG, message=HOSTILE * 10, hint=HOSTILE * 10)
    early = StoppedEarly(
        seq=1,
        time=0,
        epoch=900,
        best_epoch=800,
        best_ratio=0.5,
        reason=HOSTILE * 9,
        epochs_saved=100,
        seconds_saved=1e9,
    )
    return [
        card(worst, standing(folder)),
        card(dataclasses.replace(worst, state=State.FAILED), standing(folder)),
        base_post(worst, standing(folder), sampled(0, prompts), None),
        epoch_post(worst, standing(folder), sampled(3, prompts), worst.progress.epochs[-1]),
        early_stop_post(worst, standing(folder), early),
        warning_post(worst, standing(folder), HOSTILE * 50),
        done_post(worst, standing(folder), (exported(), exported("diffusers"), finished(comparison_alt=HOSTILE))),
        failed_post(worst, standing(folder), failed, HOSTILE),
        receipt(worst, standing(folder, 10**6), found),
        *crowded(worst, standing(folder)),
    ]


def test_no_layout_breaks_a_limit_whatever_stands_in_it(job_dir: Path) -> None:
    for content in everything(job_dir):
        parts, characters, size = weight(content.layout)
        assert (parts <= MAX_PARTS, characters <= MAX_CHARACTERS, size <= MAX_BYTES) == (True, True, True)
        assert all(len(alt or "") <= 1024 for alt in alt_texts(content))


def test_strangers_words_call_nobody_and_draw_nothing(job_dir: Path) -> None:
    for content in everything(job_dir):
        text = text_of(content).replace(f"<@{OWNER}>", "")
        for forbidden in ("@everyone", "<@", "<#3>", "**bold**", " [x](", "\n# big"):
            assert forbidden not in text, (forbidden, text)


def test_what_is_too_long_is_shortened_the_longest_first() -> None:
    file = FileToSend(path=Path("a.png"), name="a.png")
    view = layout("short", "long " * 2000, *(picture(file, "🜲" * 900) for _ in range(8)))
    parts, characters, size = weight(view)
    assert (parts, characters <= MAX_CHARACTERS, size <= MAX_BYTES) == (10, True, True)
    texts = [item.content for item in view.children if isinstance(item, ui.TextDisplay)]
    assert texts[0] == "short"
    assert texts[1].endswith("…")


def test_a_stage_says_what_is_trained_and_how_fast(job_dir: Path) -> None:
    parts = tuple(TrainedPart(name=f"unet.up_blocks.{n}", trainable=100 * n, total=1000) for n in range(11))
    began = StageBegan(
        seq=1, time=0, stage=2, name="deeper @everyone", first_epoch=4, last_epoch=9, learning_rate=1e-5,
        optimizer="lion", schedule="cosine", resolution=512, trainable_parameters=5500, parts=parts,
    )  # fmt: skip

    text = text_of(stage_post(job(), standing(job_dir), began))

    assert "stage 2 “deeper" in text
    assert "@everyone" not in text
    assert "epochs 4–9 · 5,500 weights at lr 1e-05 (lion, cosine) · 512 px" in text
    # A block of which nothing is trained is not named.
    assert "unet.up_blocks.0" not in text
    assert "and 2 more" in text


def test_an_epoch_post_tells_the_gap_and_what_a_classifier_gets_right(job_dir: Path) -> None:
    ended = epoch_ended(3).model_copy(update={"gap": 0.04, "metrics": {"balanced_accuracy": 0.917}})

    text = text_of(epoch_post(job(), standing(job_dir), None, ended))

    assert " · gap 4% · balanced accuracy 92%" in text


@pytest.mark.parametrize(
    ("settings", "exported", "words"),
    [
        (
            {},
            ("diffusers", "output/a.safetensors"),
            "your LoRA is ready|pipe.load_lora_weights('fox-lora-diffusers.safetensors')",
        ),
        (
            {"method": {"kind": "textual_inversion"}, "training": {"trigger": "zork"}},
            ("embedding", "output/zork.safetensors"),
            "your new word is ready|pipe.load_textual_inversion('zork.safetensors')",
        ),
        (
            {"method": {"kind": "full"}},
            ("checkpoint", "output/a.safetensors"),
            "your model is ready|checkpoints folder",
        ),
        (
            {"method": {"kind": "full"}},
            ("diffusers", "output/diffusers"),
            "your model is ready|A folder, on the machine",
        ),
        (
            {"method": {"kind": "loha"}},
            ("diffusers", "output/diffusers"),
            "your LoHa is ready|PeftModel.from_pretrained",
        ),
        (
            {"method": {"kind": "full"}, "task": "classification"},
            ("transformers", "output/classifier"),
            "your classifier is ready|AutoModelForImageClassification",
        ),
    ],
)
def test_each_kind_of_file_is_handed_over_with_how_to_load_it(
    job_dir: Path, settings: dict[str, object], exported: tuple[str, str], words: str
) -> None:
    file = Exported.model_validate(
        {
            "seq": 1,
            "time": 0,
            "format": exported[0],
            "path": exported[1],
            "bytes": 100,
            "sha256": "ab",
            "max_difference": 0,
        }
    )
    finished = Finished(
        seq=2, time=0, epochs=3, best_epoch=2, stopped_early=False, base_loss=0.1, best_loss=0.09, best_ratio=0.9,
        seconds=60, comparison="output/cmp.png", comparison_alt="base and best",
    )  # fmt: skip
    spec = make_spec({"name": "fox-lora", "dataset": "x", **settings})

    text = text_of(done_post(job(spec=spec), standing(job_dir), [file, finished]))

    assert all(part in text for part in words.split("|"))
