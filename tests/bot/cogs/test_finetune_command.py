"""`/finetune`, from a zip to the LoRA, as members see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import discord
import pytest

from bot.errors import DarkroomError
from bot.queue import Priority, RoleLimit, Slot, State
from bot.queue.planning.forecast import Forecaster
from tests.bot.cogs.conftest import World, answer, archive, world
from tests.bot.cogs.dataset_helpers import buttons, press
from tests.bot.ui.rendering import check_messages
from trainer.protocol.spec import SpecError

GOLDEN = Path(__file__).parent / "golden"


async def limit_everyone(lab: World, **limits: float) -> None:
    """Set limits for all members: the ID of @everyone is that of the server."""
    guild_id = lab.channel.guild.id
    limit = RoleLimit.model_validate({"role_id": guild_id, **limits})
    await lab.app.services.limits.set(guild_id, limit, by=1)


async def test_a_zip_becomes_a_lora_with_two_messages_and_a_thread_with_a_post_per_epoch(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        result = await lab.finetune(epochs=3, prompts="a fox | a red fox")
        assert result.response.ephemeral
        await lab.until_shown("is done")
        await lab.until(lambda: len(lab.thread_texts()) == 4)
        assert "Before training" in lab.thread_texts()[0]
        epochs = lab.thread_texts()[1:]
        assert [f"Epoch {n} of 3" in text for n, text in enumerate(epochs, start=1)] == [True] * 3
        await lab.until(lambda: "**Done**" in lab.texts()[0])
        assert len(lab.texts()) == 2
        message = lab.channel.history()[-1]
        # One file for most people; the other is below [All files].
        assert [file.filename for file in message.attachments] == ["fox-base-and-best.png", "fox-kohya.safetensors"]
        # Only the result makes a sound.
        assert lab.mentions() == [[]] * (len(lab.mentions()) - 1) + [[lab.ana.id]]
        assert [each.flags.suppress_notifications for each in lab.messages()].count(False) == 1
        job = await lab.jobs.get(1)
        assert (job.state, job.spec.samples.prompts) == (State.SUCCEEDED, ("a fox", "a red fox"))


async def test_a_dataset_is_trained_on_again_by_its_name(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        choices = await lab.ben.autocomplete(lab.channel, "finetune", "from_dataset", "fo")
        assert choices == [{"name": "fox · 6 images", "value": "fox"}]
        await lab.finetune(lab.ben, from_dataset="fox", name="Second Try", seed=2)
        assert [(job.id, job.name) for job in await lab.recent()] == [(2, "second-try"), (1, "fox")]
        await lab.until(lambda: len(lab.posts("is done")) == 2)


async def test_the_receipt_names_skipped_images(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        reply = answer(await lab.finetune(dataset=archive(5, corrupt__png=b"?")))
        assert "5 images, 1 skipped (1 damaged)" in reply
        assert "skipped corrupt.png: it cannot be decoded" in reply


#: Options of `/finetune` that are refused.
REFUSED: dict[str, dict[str, Any]] = {
    "no zip": {"dataset": ("notes.zip", b"no zip at all")},
    "no images": {"dataset": archive(0, readme__txt=b"?")},
    "too few images": {"dataset": archive(3)},
    "empty file": {"dataset": ("empty.zip", b"")},
    "two datasets": {"dataset": archive(), "from_dataset": "fox"},
    "unknown dataset": {"from_dataset": "unknown"},
    "no dataset": {},
    "priority of a manager": {"dataset": archive(), "priority": "high"},
    "too many GPUs": {"dataset": archive(), "gpus": 8},
    "unclear start": {"dataset": archive(), "start": "whenever"},
}


async def test_invalid_options_get_one_sentence_and_nothing_is_queued(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.jobs.slots.set([Slot(id="cpu", device="", name="CPU")])
        sentences = {}
        for name, options in REFUSED.items():
            result = await lab.ana.slash(lab.channel, "finetune", confirm=False, **options)
            assert result.response.ephemeral, name
            sentences[name] = answer(result).replace("\\", "")

        check_messages(GOLDEN / "finetune_refusals.txt", sentences)
        assert lab.channel.history() == []
        assert await lab.recent() == []
        assert await lab.app.services.datasets.count(lab.channel.guild.id) == 0
        assert await lab.app.services.uploads.unfinished() == []
        assert all(issubclass(each, DarkroomError | SpecError) for each in lab.refusals())


#: Options that a form puts right.
WRONG: dict[str, dict[str, Any]] = {
    "unknown preset": {"preset": "lorra"},
    "unknown base": {"base": "sd9"},
    "too many epochs": {"epochs": 500},
    "invalid name": {"name": "!!!"},
    "too many prompts": {"prompts": "|".join("abcdefghij")},
    "missing words": {"preset": "dreambooth"},
    "several": {"settings": ("s.toml", b"lr = 3\nrank = 'many'\nseeed = 4")},
    "a file of the machine": {"settings": ("s.toml", b"base.source = '/etc'")},
    "a preset for classes": {"preset": "classifier"},
}


async def test_wrong_options_are_asked_for_again_in_a_form(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        sentences = {}
        # One upload for all: an archive has the time in it, and other bytes are another dataset.
        images = archive()
        for name, options in WRONG.items():
            result = await lab.ana.slash(lab.channel, "finetune", dataset=images, **options)
            assert "Fix in form" in buttons(result.response), name
            sentences[name] = answer(result).replace("\\", "")

        check_messages(GOLDEN / "finetune_wrong_options.txt", sentences)
        assert lab.channel.history() == []
        assert await lab.recent() == []


async def test_a_file_that_is_too_large_is_refused_before_its_download(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        downloads: list[str] = []

        async def download(attachment: discord.Attachment) -> Any:
            downloads.append(attachment.filename)
            yield b""

        await limit_everyone(lab, max_dataset_mib=1)
        object.__setattr__(lab.app.services, "download", download)
        assert "big.zip" in answer(await lab.finetune(dataset=("big.zip", b"x" * 2**20 + b"x")))
        assert downloads == []
        assert await lab.app.services.uploads.unfinished() == []


async def test_limits_of_a_role_apply_to_its_members(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        guild = lab.channel.guild
        role = guild.create_role("Trainer")
        cleo = guild.add_member(lab.env.create_user("cleo"), roles=[role])
        await limit_everyone(lab, max_epochs=3)
        await lab.app.services.limits.set(guild.id, RoleLimit(role_id=role.id, max_epochs=50), by=1)
        result = await lab.finetune(epochs=4, early_stop=False)
        assert "4 epochs are more than the 3" in answer(result)
        assert list(buttons(result.response)) == ["Fix in form", "All settings…", "Cancel"]
        assert await lab.recent() == []
        await lab.finetune(epochs=3, early_stop=False)
        await lab.finetune(cleo, epochs=4, early_stop=False)
        assert [job.owner_id for job in await lab.recent()] == [cleo.id, lab.ana.id]


async def test_priority_gpus_and_a_delayed_start_are_stored_and_shown(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        reply = answer(await lab.finetune(priority="low", start="in 2 h"))
        (job,) = await lab.recent()
        assert (job.priority, job.gpus) == (Priority.LOW, 1)
        assert job.run_after is not None
        assert 7100 < (job.run_after - job.created_at).total_seconds() <= 7200
        assert "Low priority" in reply
        assert f"<t:{int(job.run_after.timestamp())}:f>" in reply


async def test_a_manager_may_use_high_priority(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.finetune(lab.add_manager(), priority="high")
        (job,) = await lab.recent()
        assert job.priority is Priority.HIGH


async def test_a_job_that_starts_while_it_is_answered_shows_its_estimate(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(data_dir) as lab:
        await lab.train()

        async def gone(_forecaster: Forecaster, _job_id: int) -> None:
            return None

        monkeypatch.setattr(Forecaster, "of", gone)
        assert "akes about" in answer(await lab.finetune(seed=2))


async def test_estimates_are_shown_and_the_gpu_hours_of_a_week_are_limited(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.train()
        assert "akes about" in answer(await lab.finetune(seed=2))
        assert [job.estimate_s is not None for job in await lab.recent()] == [True, False]
        await lab.until(lambda: len(lab.posts("is done")) == 2)
        await limit_everyone(lab, gpu_hours_per_week=1e-9)
        assert "GPU hours of this week are used or reserved" in answer(await lab.finetune(seed=3))
        # Another member has hours of their own, and needs more.
        assert "This needs about" in answer(await lab.finetune(lab.ben, seed=3))
        assert len(await lab.recent()) == 2
        assert await lab.app.services.uploads.unfinished() == []


async def test_a_duplicate_is_queued_only_after_a_confirmation(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        await lab.finetune(epochs=2)
        result = await lab.finetune(lab.ben, epochs=2, name="another name")
        assert list(buttons(result.response)) == ["Open #1", "Queue anyway"]
        assert len(await lab.recent()) == 1
        assert "#1 fox" in answer(await press(lab.ben, result.response.message, "Open #1"))
        await press(lab.ben, result.response.message, "Queue anyway")
        (twin, _) = await lab.recent()
        assert (twin.name, twin.owner_id) == ("another-name", lab.ben.id)


async def test_too_many_queued_jobs_are_refused_and_none_is_lost(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        for number in range(4):
            await lab.finetune(dataset=archive(6 + number), epochs=2)
        assert "You have 3 of 3 jobs waiting" in answer(await lab.finetune(epochs=2))
        jobs = await lab.recent()
        assert [job.state for job in jobs] == [State.QUEUED] * 3 + [State.RUNNING]
        assert await lab.app.services.uploads.unfinished() == []


async def test_missing_permissions_are_named_before_anything_is_queued(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        bot = lab.env.bot.user
        shut = lab.channel.guild.create_text_channel(
            "shut", overwrites={bot: discord.PermissionOverwrite(send_messages=False, attach_files=False)}
        )
        reply = answer(await lab.ana.slash(shut, "finetune", confirm=False, dataset=archive()))
        assert "Missing: Send Messages and Attach Files." in reply
        assert await lab.recent() == []
        assert lab.refusals()


async def test_a_bug_is_reported_with_a_reference_that_is_in_the_log(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(data_dir) as lab:

        async def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("secret path /root")

        object.__setattr__(lab.jobs, "submit", broken)
        reply = answer(await lab.finetune())
        assert "secret" not in reply
        assert reply.rpartition("Ref ")[2].rstrip(".") in caplog.text
        assert await lab.app.services.uploads.unfinished() == []


async def test_autocomplete_offers_presets_and_models(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        presets = await lab.ana.autocomplete(lab.channel, "finetune", "preset", "lo")
        assert presets[0]["value"] == "lora"
        assert presets[0]["name"].startswith("lora · ")
        assert await lab.ana.autocomplete(lab.channel, "finetune", "base", "") == [
            {"name": "tiny · toy model for the demo, 64 px, simple shapes only", "value": "tiny"}
        ]
