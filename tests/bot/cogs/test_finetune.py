"""`/finetune` from the dropped zip to the LoRA, as people in the channel see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import discord
import pytest

from bot.queue import Priority, RoleLimit, State
from tests.bot.cogs.conftest import World, answer, archive, world
from tests.bot.cogs.room import buttons, press


async def limit_everyone(lab: World, **limits: float) -> None:
    """What all members of the server may ask for: @everyone has the server's own number."""
    guild_id = lab.channel.guild.id
    limit = RoleLimit.model_validate({"role_id": guild_id, **limits})
    await lab.app.services.limits.set(guild_id, limit, by=1)


async def test_a_zip_becomes_a_lora_and_the_channel_sees_it_grow(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        result = await lab.ana.slash(
            lab.channel, "finetune", confirm=False, dataset=archive(), epochs=3, prompts="a fox | a red fox"
        )
        told = answer(result)
        assert "✅ **Queued #1 “fox”** · 1st in line" in told
        assert "6 images, all captioned · split 4 train / 1 validation / 1 test" in told
        assert result.response.ephemeral
        done = await lab.until_shown("is done")
        assert f"<@{lab.ana.id}> your LoRA is ready. Validation loss **0.88× the base's**" in done
        assert len(lab.posts("before training")) == 1
        assert [f"epoch {n}/3" in text for n, text in enumerate(lab.posts("**epoch "), start=1)] == [True] * 3
        await lab.until(lambda: "**Done**" in lab.texts()[0])
        message = lab.channel.history()[-1]
        assert [file.filename for file in message.attachments] == [
            "fox-base-and-best.png",
            "fox-diffusers.safetensors",
            "fox-kohya.safetensors",
        ]
        assert lab.called() == [[]] * (len(lab.called()) - 1) + [[lab.ana.id]]
        job = await lab.app.services.jobs.get(1)
        assert job.spec.samples.prompts == ("a fox", "a red fox")


async def test_only_the_end_makes_a_sound(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1)
        await lab.until_shown("is done")
        loud = [message for message in lab.channel.history() if not message.flags.suppress_notifications]
        assert len(loud) == 1
        assert [ids for ids in lab.called() if ids] == [[lab.ana.id]]


async def test_a_known_dataset_is_trained_on_again_without_its_file(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1)
        choices = await lab.ben.autocomplete(lab.channel, "finetune", "from_dataset", "fo")
        assert choices == [{"name": "fox · 6 images", "value": "fox"}]
        told = answer(
            await lab.ben.slash(
                lab.channel, "finetune", confirm=False, from_dataset="fox", epochs=1, name="Second Try", seed=2
            )
        )
        assert "Queued #2 “second-try”" in told
        await lab.until(lambda: len(lab.posts("is done")) == 2)


async def test_the_receipt_names_what_was_skipped(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        told = answer(
            await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(5, corrupt__png=b"?"), epochs=1)
        )
        assert "5 images, 1 skipped (1 corrupt)" in told
        assert "skipped corrupt.png: it cannot be decoded" in told


BAD: list[tuple[dict[str, Any], str]] = [
    ({"dataset": ("notes.zip", b"no zip at all")}, "notes.zip is not a zip archive"),
    ({"dataset": archive(0, readme__txt=b"?")}, "fox.zip holds no pictures"),
    ({"dataset": archive(3)}, "Only 3 usable images"),
    ({"dataset": ("empty.zip", b"")}, "0 bytes"),
    ({"dataset": archive(), "preset": "lorra"}, "Did you mean lora?"),
    ({"dataset": archive(), "base": "sd9"}, "There is no base model 'sd9' here. Models: tiny."),
    ({"dataset": archive(), "epochs": 500}, "500 epochs are more than the 100"),
    ({"dataset": archive(), "name": "!!!"}, "name '!!!' must be 1–40 small letters"),
    ({"dataset": archive(), "prompts": "|".join("abcdefghij")}, "samples.prompts"),
    ({"dataset": archive(), "from_dataset": "fox"}, "not both"),
    ({"from_dataset": "nobody"}, "There is no dataset 'nobody' here"),
    ({}, "Give me pictures"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
async def test_bad_input_gets_one_clear_sentence_and_nothing_is_queued(
    data_dir: Path, options: dict[str, Any], sentence: str
) -> None:
    async with world(data_dir) as lab:
        result = await lab.ana.slash(lab.channel, "finetune", confirm=False, **options)
        told = answer(result).replace("\\", "")
        assert sentence in told
        assert "Traceback" not in told
        assert result.response.ephemeral
        assert lab.channel.history() == []
        assert await lab.app.services.jobs.recent(lab.channel.guild.id) == []
        # Told in words, so it is no error to the bot.
        assert [
            error for error in lab.env.errors if not isinstance(error, discord.app_commands.CommandInvokeError)
        ] == []


async def test_a_file_over_the_limit_is_refused_before_it_is_downloaded(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        downloads: list[str] = []

        async def download(attachment: discord.Attachment) -> Any:
            downloads.append(attachment.filename)
            yield b""

        await limit_everyone(lab, max_dataset_mib=1)
        object.__setattr__(lab.app.services, "download", download)
        told = answer(
            await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=("big.zip", b"x" * 2**20 + b"x"))
        )
        assert "big.zip is larger than the 1 MiB" in told
        assert downloads == []
        assert await lab.app.services.uploads.all() == []


async def test_what_a_role_may_do_is_for_those_who_have_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        guild = lab.channel.guild
        role = guild.create_role("Trainer")
        cleo = guild.add_member(lab.env.create_user("cleo"), roles=[role])
        await limit_everyone(lab, max_epochs=3)
        await lab.app.services.limits.set(guild.id, RoleLimit(role_id=role.id, max_epochs=50), by=1)
        asked = {"confirm": False, "dataset": archive(), "epochs": 4, "early_stop": False}
        told = answer(await lab.ana.slash(lab.channel, "finetune", **asked))
        assert "4 epochs are more than the 3 that one job of yours may ask for here." in told
        assert "Queued #1" in answer(await lab.ana.slash(lab.channel, "finetune", **{**asked, "epochs": 3}))
        assert "Queued #2" in answer(await cleo.slash(lab.channel, "finetune", **asked))
        assert lab.env.errors


async def test_priority_gpus_and_a_delay_are_kept_and_shown(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        told = answer(
            await lab.ana.slash(
                lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1, priority="low", start="in 2 h"
            )
        )
        (job,) = await lab.app.services.jobs.recent(lab.channel.guild.id)
        assert (job.priority, job.gpus) == (Priority.LOW, 1)
        assert job.run_after is not None
        assert 7100 < (job.run_after - job.created_at).total_seconds() <= 7200
        assert "low priority" in told
        assert f"It was asked to start at <t:{int(job.run_after.timestamp())}:f>" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"priority": "high"}, "High priority is for those who may manage the server."),
        ({"gpus": 3}, "This asks for 3 GPUs, and there are "),
        ({"start": "whenever"}, '"whenever" is no time that I understand.'),
    ],
)
async def test_an_order_that_cannot_be_had_is_refused_before_a_download(
    data_dir: Path, options: dict[str, Any], sentence: str
) -> None:
    async with world(data_dir) as lab:
        assert sentence in answer(await lab.ana.slash(lab.channel, "finetune", dataset=archive(), **options))
        assert await lab.app.services.datasets.count(lab.channel.guild.id) == 0
        assert lab.env.errors


async def test_who_may_manage_the_server_may_go_first(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        guild = lab.channel.guild
        chief = guild.create_role("Chief", permissions=discord.Permissions(manage_guild=True))
        cleo = guild.add_member(lab.env.create_user("cleo"), roles=[chief])
        await cleo.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1, priority="high")
        (job,) = await lab.app.services.jobs.recent(guild.id)
        assert job.priority is Priority.HIGH


async def test_what_was_measured_is_promised_and_the_week_s_hours_end(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        asked = {"confirm": False, "dataset": archive(), "epochs": 1}
        told = answer(await lab.ana.slash(lab.channel, "finetune", **asked))
        assert "runs about" not in told
        await lab.until_shown("is done")
        told = answer(await lab.ana.slash(lab.channel, "finetune", **asked, seed=2))
        assert "runs about" in told
        job = await lab.app.services.jobs.get(2)
        assert job.estimate_s is not None
        await lab.until(lambda: len(lab.posts("is done")) == 2)
        await limit_everyone(lab, gpu_hours_per_week=1e-9)
        told = answer(await lab.ana.slash(lab.channel, "finetune", **asked, seed=3))
        assert "GPU-h that you have a week are used or promised" in told
        # Somebody else's week is their own.
        told = answer(await lab.ben.slash(lab.channel, "finetune", **asked, seed=3))
        assert "This needs ≈" in told
        assert await lab.app.services.uploads.all() == []


async def test_the_same_again_is_named_and_queued_only_if_that_is_meant(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        asked = {"confirm": False, "dataset": archive(), "epochs": 2}
        await lab.ana.slash(lab.channel, "finetune", **asked)
        result = await lab.ben.slash(lab.channel, "finetune", **asked, name="another name")
        assert "Same data and settings as **#1**" in answer(result)
        assert list(buttons(result.response)) == ["Open #1", "Queue anyway"]
        assert len(await lab.app.services.jobs.recent(lab.channel.guild.id)) == 1
        assert "#1 fox" in answer(await press(lab.ben, result.response.message, "Open #1"))
        again = await press(lab.ben, result.response.message, "Queue anyway")
        assert "✅ **Queued #2 “another-name”**" in answer(again)
        (twin, _) = await lab.app.services.jobs.recent(lab.channel.guild.id)
        assert twin.owner_id == lab.ben.id


async def test_too_many_jobs_in_line_are_refused_and_none_is_lost(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S="9") as lab:
        for number in range(4):
            await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(6 + number), epochs=2)
        told = answer(await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=2))
        assert "You have 3 of 3 jobs waiting" in told
        jobs = await lab.app.services.jobs.recent(lab.channel.guild.id)
        assert [job.state for job in jobs] == [State.QUEUED] * 3 + [State.RUNNING]
        assert await lab.app.services.uploads.all() == []


async def test_missing_permissions_are_named_before_anything_is_queued(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        bot = lab.env.bot.user
        shut = lab.channel.guild.create_text_channel(
            "shut", overwrites={bot: discord.PermissionOverwrite(send_messages=False, attach_files=False)}
        )
        told = answer(await lab.ana.slash(shut, "finetune", confirm=False, dataset=archive()))
        assert "I can't post in #shut. Missing: Send Messages and Attach Files." in told
        assert await lab.app.services.jobs.recent(lab.channel.guild.id) == []
        assert lab.env.errors


async def test_a_bug_is_told_by_a_reference_that_stands_in_the_log(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(data_dir) as lab:

        async def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("secret path /root")

        object.__setattr__(lab.app.services.jobs, "submit", broken)
        told = answer(await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive()))
        assert "Something broke on my side. Nothing was lost. Ref " in told
        assert "secret" not in told
        assert told.rpartition("Ref ")[2].rstrip(".") in caplog.text
        assert await lab.app.services.uploads.all() == []


async def test_autocomplete_offers_presets_and_models(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        presets = await lab.ana.autocomplete(lab.channel, "finetune", "preset", "lo")
        assert presets[0]["value"] == "lora"
        assert presets[0]["name"].startswith("lora · ")
        assert await lab.ana.autocomplete(lab.channel, "finetune", "base", "") == [{"name": "tiny", "value": "tiny"}]
