"""A dataset of a folder on the machine that the configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.config import Config, DatasetSettings, WebSettings
from tests.bot.cogs import conftest
from tests.bot.cogs.conftest import PNG, answer, world


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with six images in folders, and what does not belong into a dataset."""
    folder = tmp_path / "photos"
    for number in range(6):
        (folder / f"day {number % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"day {number % 2}" / f"{number}.png").write_bytes(PNG + bytes([number]))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(PNG + b"secret")
    (folder / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / ".hidden.png").write_bytes(PNG + b"hidden")
    without = conftest.config_for
    settings = DatasetSettings(folders={"product photos": folder, "gone": tmp_path / "gone"})

    def with_folders(data: Path, **trainer_env: str) -> Config:
        changes = {"datasets": settings, "web": WebSettings(max_upload_files=6)}
        return without(data, **trainer_env).model_copy(update=changes)

    monkeypatch.setattr(conftest, "config_for", with_folders)
    return folder


async def test_a_manager_makes_a_dataset_of_a_folder_and_the_folder_may_change_then(
    tmp_path: Path, photos: Path
) -> None:
    async with world(tmp_path / "data") as lab:
        boss = lab.add_manager()
        card = answer(await boss.slash(lab.channel, "dataset upload", from_server="product photos"))
        assert "photos" in card
        (dataset,) = await lab.app.services.datasets.search(lab.channel.guild.id)
        assert (dataset.name, dataset.counts.kept, dataset.owner_id) == ("photos", 6, boss.id)
        stored = dataset.source / "photos" / "day 0" / "0.png"
        (photos / "day 0" / "0.png").write_bytes(b"changed")
        assert stored.read_bytes() == PNG + bytes([0])
        assert list((tmp_path / "data" / "incoming").glob("*")) == []


@pytest.mark.parametrize("label", ["product photos", "gone", "/etc", "../photos"])
async def test_others_and_unknown_folders_are_refused(tmp_path: Path, photos: Path, label: str) -> None:
    async with world(tmp_path / "data") as lab:
        refused = answer(await lab.ana.slash(lab.channel, "dataset upload", from_server=label))
        assert "no folder of that name" in refused
        if label != "product photos":
            refused = answer(await lab.add_manager().slash(lab.channel, "dataset upload", from_server=label))
            assert "no folder of that name" in refused or "no files" in refused
        assert await lab.app.services.datasets.search(lab.channel.guild.id) == []


async def test_a_folder_with_too_many_files_is_refused_and_nothing_is_left(tmp_path: Path, photos: Path) -> None:
    (photos / "seventh.png").write_bytes(PNG + b"7")
    async with world(tmp_path / "data") as lab:
        refused = answer(await lab.add_manager().slash(lab.channel, "dataset upload", from_server="product photos"))
        assert "more than 6 files" in refused
        assert list((tmp_path / "data" / "incoming").glob("*")) == []
        assert await lab.app.db.all("SELECT * FROM upload") == []
