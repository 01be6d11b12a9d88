"""The good path over a real wire: from `/finetune` to the finished model, by the unchanged bot."""

from __future__ import annotations

import pytest

from tests.wire.conftest import archive
from tests.wire.wire_bot import WireBot
from tests.wire.wire_discord import WireDiscord
from tests.wire.wire_people import Person

pytestmark = pytest.mark.slow


async def test_a_job_goes_from_the_command_to_its_files(discord: WireDiscord, bot: WireBot, ana: Person) -> None:
    asked = await ana.slash("finetune", dataset=archive(), epochs=1)
    await discord.until(lambda: asked.is_settled)
    assert asked.message is not None
    confirmed = await ana.click(asked.message, "Start training")
    await discord.until(lambda: confirmed.is_settled)
    done = await discord.until_posted("is done")
    assert any(name.endswith(".safetensors") for name in done.file_names)
    assert done.mentions == [ana.id]
    offered = await ana.complete("job status", "id", "")
    await discord.until(lambda: offered.callbacks)
    assert offered.choices
    shown = await ana.slash("queue")
    await discord.until(lambda: shown.is_settled)
    assert discord.unknown_requests == []
    assert "Traceback" not in bot.log
    assert await bot.stop() == 0
