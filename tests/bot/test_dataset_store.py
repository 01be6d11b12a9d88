"""Datasets: received under a limit, kept by content, examined in a process that may misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from bot.config import LimitSettings, PrepareSettings
from bot.datasets import Dataset, DatasetStore, Received, Upload
from bot.datasets.receiving import dataset_name, plain_name
from bot.db import Database
from bot.errors import DatasetRefused, DatasetTooLarge, NoSuchDataset, PrepareFailed, TooFewImages
from tests.bot.conftest import GUILD
from trainer.protocol.process import identify

MakeStore = Callable[..., DatasetStore]

_COUNTS = {"images": 9, "kept": 9, "dropped": 0, "refused": 0, "train": 7, "validation": 1, "test": 1, "captioned": 9}
_REPORT = {"digest": "d", "counts": _COUNTS, "summary": "Nine pictures.", "images": [], "resolution": 64}

#: `trainer prepare`, as far as the bot can see: writes a report, and a line into `runs` each time.
_GOOD = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir()
pathlib.Path(sys.argv[1]).open("a").write("run\\n")
(out / "report.json").write_text(sys.argv[2])
"""


@pytest.fixture
def make_store(db: Database, tmp_path: Path) -> MakeStore:
    def make(
        script: str = _GOOD, *, report: object = _REPORT, timeout_s: float = 60, memory_mib: int = 4096
    ) -> DatasetStore:
        path = tmp_path / "prepare.py"
        path.write_text(script)
        return DatasetStore(
            db,
            data_dir=tmp_path / "data",
            limits=LimitSettings(max_dataset_mib=1, max_dataset_files=3),
            prepare=PrepareSettings(timeout_s=timeout_s, memory_mib=memory_mib),
            command=(sys.executable, str(path), str(tmp_path / "runs"), json.dumps(report)),
        )

    return make


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], int]:
    return lambda: (tmp_path / "runs").read_text().count("run") if (tmp_path / "runs").exists() else 0


async def stream(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def received(store: DatasetStore, data: bytes = b"zip", name: str = "Momo.zip") -> Received:
    return await store.receive(name, stream(data))


async def prepared(store: DatasetStore, data: bytes = b"zip", name: str = "Momo.zip", guild: int = GUILD) -> Dataset:
    return await store.prepare(await received(store, data, name), guild_id=guild, owner_id=5)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- receiving -----------------------------------------------------------------------------------------------------


async def test_a_file_is_kept_under_its_content(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    one, two = await asyncio.gather(received(store, b"a" * 5000, "a.zip"), received(store, b"a" * 5000, "a.zip"))

    assert one.sha256 == two.sha256
    assert one.files[0].bytes == 5000
    assert files_below(tmp_path / "data/datasets") == [f"{one.sha256}/source/a.zip"]
    assert files_below(tmp_path / "data/incoming") == []


async def test_what_is_too_large_is_refused_early_and_leaves_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    read = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            read.append(1)
            yield b"x" * 100_000

    with pytest.raises(DatasetTooLarge, match=r"big.zip is larger than the 1 MiB"):
        await make_store().receive("big.zip", endless())
    assert len(read) == 11
    assert files_below(tmp_path / "data") == ["darkroom.sqlite", "darkroom.sqlite-shm", "darkroom.sqlite-wal"]


async def test_the_limit_is_for_all_files_together(make_store: MakeStore) -> None:
    uploads = [Upload(name=f"{number}.png", chunks=stream(b"x" * 400_000)) for number in range(3)]
    with pytest.raises(DatasetTooLarge, match=r"2\.png"):
        await make_store().receive_all(uploads)


async def test_a_download_that_breaks_off_leaves_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        await make_store().receive("a.zip", broken())
    assert not any((tmp_path / "data/incoming").iterdir())


async def test_several_files_are_one_content_whatever_their_order(make_store: MakeStore) -> None:
    store = make_store()
    names = ["a.png", "a.txt", "../a.png"]
    results = []
    for order in (names, names):
        uploads = [Upload(name=name, chunks=stream(name.encode())) for name in order]
        results.append(await store.receive_all(uploads))
    swapped = [Upload(name="a.txt", chunks=stream(b"a.txt")), Upload(name="a.png", chunks=stream(b"a.png"))]
    pair = await store.receive_all(swapped)
    straight = await store.receive_all(
        [Upload(name="a.png", chunks=stream(b"a.png")), Upload(name="a.txt", chunks=stream(b"a.txt"))]
    )

    assert results[0].sha256 == results[1].sha256 != pair.sha256
    assert pair.sha256 == straight.sha256
    assert [file.name for file in results[0].files] == ["a.png", "a.txt", "a-2.png"]
    assert results[0].title == "a.png and 2 more"


@pytest.mark.parametrize("count", [0, 4])
async def test_no_file_and_too_many_files_are_refused(make_store: MakeStore, count: int) -> None:
    uploads = [Upload(name=f"{number}.png", chunks=stream(b"x")) for number in range(count)]
    with pytest.raises(DatasetRefused):
        await make_store().receive_all(uploads)


@pytest.mark.parametrize(
    ("given", "plain", "name"),
    [
        ("Momo Fox.ZIP", "Momo Fox.ZIP", "momo-fox"),
        ("../../etc/passwd", "passwd", "passwd"),
        ("C:\\x\\a.zip", "a.zip", "a"),
        (".bashrc", "bashrc", "bashrc"),
        ("a\x00\n.png", "a.png", "a"),
        ("..", "file", "file"),
        ("写真.zip", "写真.zip", "dataset"),
        ("x" * 300 + ".zip", "x" * 96 + ".zip", "x" * 36),
    ],
)
def test_names_are_made_plain(given: str, plain: str, name: str) -> None:
    assert plain_name(given) == plain
    assert dataset_name(plain) == name


# -- preparing -----------------------------------------------------------------------------------------------------


async def test_a_good_dataset_is_found_by_name_number_and_search(make_store: MakeStore) -> None:
    store = make_store()
    dataset = await prepared(store)

    assert (dataset.name, dataset.counts.kept, dataset.summary) == ("momo", 9, "Nine pictures.")
    assert dataset.folder.is_absolute()
    assert await store.get(dataset.id) == dataset == await store.named(GUILD, "MOMO")
    assert [found.name for found in await store.search(GUILD, "om")] == ["momo"]
    assert (await store.report(dataset)).digest == "d"
    assert await store.search(GUILD + 1) == []
    for missing in (store.get(99), store.named(GUILD + 1, "momo")):
        with pytest.raises(NoSuchDataset):
            await missing


async def test_the_same_content_is_examined_once_and_is_one_dataset_of_its_server(
    make_store: MakeStore, runs: Callable[[], int]
) -> None:
    store = make_store()
    datasets = await asyncio.gather(*(prepared(store, guild=guild) for guild in (GUILD, GUILD, GUILD + 1)))

    assert runs() == 1
    assert datasets[0] == datasets[1]
    assert datasets[2].id != datasets[0].id
    assert datasets[2].folder == datasets[0].folder


async def test_another_content_of_the_same_name_gets_a_number(make_store: MakeStore) -> None:
    store = make_store()
    names = [(await prepared(store, data)).name for data in (b"1", b"2", b"3")]
    assert names == ["momo", "momo-2", "momo-3"]


async def test_a_refusal_is_said_in_the_trainers_words(make_store: MakeStore, db: Database) -> None:
    store = make_store(
        "import sys\nprint('noise', file=sys.stderr)\nprint('It is no zip: x.', file=sys.stderr)\nsys.exit(3)"
    )
    with pytest.raises(DatasetRefused, match=r"^It is no zip: x\.$"):
        await prepared(store)
    assert len(await db.all("SELECT * FROM dataset WHERE name = 'momo'")) == 0
    assert (await prepared(make_store())).name == "momo"


async def test_too_few_pictures_are_refused_with_numbers(make_store: MakeStore) -> None:
    counts = _COUNTS | {"images": 4, "kept": 3, "dropped": 1}
    with pytest.raises(TooFewImages, match=r"Only 3 usable images \(1 dropped, 0 refused\); a training needs 5"):
        await prepared(make_store(report=_REPORT | {"counts": counts}))


async def test_an_examination_that_takes_too_long_is_ended_with_its_helpers(
    make_store: MakeStore, tmp_path: Path
) -> None:
    script = (
        "import pathlib, subprocess, sys, time\n"
        "helper = subprocess.Popen(['sleep', '1000'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(helper.pid))\n"
        "time.sleep(1000)"
    )
    began = time.monotonic()
    with pytest.raises(PrepareFailed, match=r"could not examine Momo.zip: it took longer than 5 s"):
        await prepared(make_store(script, timeout_s=5))
    assert time.monotonic() - began < 60
    pid = int((tmp_path / "runs").read_text())
    deadline = time.monotonic() + 10
    while identify(pid) is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory on Linux only")
async def test_an_examination_that_wants_too_much_memory_fails_in_words(make_store: MakeStore) -> None:
    with pytest.raises(PrepareFailed, match=r"out of memory at 256 MiB"):
        await prepared(make_store("import time; time.sleep(0.2); x = bytearray(2**30)", memory_mib=256))


async def test_a_half_written_result_of_a_crash_is_made_again(
    make_store: MakeStore, tmp_path: Path, runs: Callable[[], int]
) -> None:
    store = make_store()
    content = await received(store)
    folder = tmp_path / "data/datasets" / content.sha256
    (folder / "prepared.part").mkdir()
    (folder / "prepared.part/half.png").touch()
    (folder / "prepared").mkdir()
    (folder / "prepared/report.json").write_text("{")

    dataset = await store.prepare(content, guild_id=GUILD, owner_id=1)
    assert files_below(dataset.folder) == ["report.json"]
    assert runs() == 1


async def test_a_report_that_cannot_be_read_is_said(make_store: MakeStore) -> None:
    with pytest.raises(PrepareFailed, match="cannot be read"):
        await prepared(make_store(report={"version": 99}))


async def test_the_sweep_takes_only_what_is_old_and_no_dataset(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    kept = await prepared(store, b"kept")
    old = await received(store, b"old")
    young = await received(store, b"young")
    half = tmp_path / "data/incoming/half"
    half.mkdir()
    long_ago = time.time() - 200_000
    for folder in (kept.folder.parent, old.source.parent, half):
        os.utime(folder, (long_ago, long_ago))

    assert await store.sweep(older_than_s=86_400) == 2
    assert kept.folder.exists()
    assert young.source.exists()
    assert not half.exists()
    assert not old.source.exists()
