"""Datasets: received within a limit, stored by content, prepared in a process that may misbehave."""

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
from bot.datasets import Dataset, DatasetStore, Received, Upload, prepare_runner, progress_reported
from bot.datasets.dataset_files import dataset_name, plain_name
from bot.datasets.prepare_runner import Turns
from bot.db import Database
from bot.errors import (
    DatasetRefused,
    DatasetTooLarge,
    DiskAlmostFull,
    NoSuchDataset,
    PrepareFailed,
    TooFewImages,
    TooManyDatasets,
)
from tests.bot.conftest import GUILD
from tests.bot.fakes import eventually, uploads
from trainer.exchange.dataset_dir import read_report
from trainer.exchange.process import identify
from trainer.protocol.progress import PreparePhase, PrepareProgress
from trainer.protocol.report import DatasetReport

MakeStore = Callable[..., DatasetStore]

_COUNTS = {"images": 9, "kept": 9, "dropped": 0, "refused": 0, "train": 7, "validation": 1, "test": 1, "captioned": 9}
_REPORT = {"digest": "d", "counts": _COUNTS, "summary": "Nine images.", "images": []}

#: A stand-in for `trainer prepare`: writes a report, and adds a line to `runs` each time.
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
        script: str = _GOOD,
        *,
        report: object = _REPORT,
        timeout_s: float = 60,
        memory_mib: int = 4096,
        min_free_bytes: int = 0,
        **limits: int,
    ) -> DatasetStore:
        path = tmp_path / "prepare.py"
        path.write_text(script)
        return DatasetStore(
            db,
            data_dir=tmp_path / "data",
            limits=LimitSettings(**{"max_dataset_mib": 1, "max_dataset_files": 3, **limits}),
            min_free_bytes=min_free_bytes,
            prepare=PrepareSettings(timeout_s=timeout_s, memory_mib=memory_mib),
            command=(sys.executable, str(path), str(tmp_path / "runs"), json.dumps(report)),
        )

    return make


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], int]:
    return lambda: (tmp_path / "runs").read_text().count("run") if (tmp_path / "runs").exists() else 0


async def received(store: DatasetStore, data: bytes = b"zip", name: str = "Momo.zip") -> Received:
    return await store.receive(uploads({name: data}))


async def prepared(store: DatasetStore, data: bytes = b"zip", name: str = "Momo.zip", guild: int = GUILD) -> Dataset:
    return await store.prepare(await received(store, data, name), guild_id=guild, owner_id=5)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


#: It says how far it has come, and goes on once the listener was told: `sys.argv[-1]` is the progress file.
_TELLING = (
    """
import pathlib, sys, time
progress = pathlib.Path(sys.argv[sys.argv.index("--progress") + 1])
for done in (14, 60):
    part = progress.with_suffix(".part")
    part.write_text('{"phase": "reading", "done": %d, "total": 60}' % done)
    part.rename(progress)
    while not pathlib.Path(sys.argv[1]).with_name(f"told-{done}").exists():
        time.sleep(0.01)
"""
    + _GOOD
)


async def test_a_preparation_tells_how_far_it_has_come(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_runner, "PROGRESS_EVERY_S", 0.01)
    told: list[PrepareProgress] = []

    async def listen(progress: PrepareProgress) -> None:
        told.append(progress)
        (tmp_path / f"told-{progress.done}").touch()

    store = make_store(_TELLING)
    with progress_reported(listen):
        dataset = await prepared(store)

    assert told == [PrepareProgress(phase=PreparePhase.READING, done=done, total=60) for done in (14, 60)]
    # The file is gone.
    assert not list(dataset.folder.parent.glob("progress-*"))


# -- receiving -----------------------------------------------------------------------------------------------------


async def test_a_file_is_stored_by_its_content(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    one, two = await asyncio.gather(received(store, b"a" * 5000, "a.zip"), received(store, b"a" * 5000, "a.zip"))

    assert one.sha256 == two.sha256
    assert one.files[0].bytes == 5000
    assert files_below(tmp_path / "data/datasets") == [f"{one.sha256}/source/a.zip"]
    assert files_below(tmp_path / "data/incoming") == []


async def test_a_file_that_is_too_large_is_refused_early_and_leaves_nothing(
    make_store: MakeStore, tmp_path: Path
) -> None:
    read = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            read.append(1)
            yield b"x" * 100_000

    with pytest.raises(DatasetTooLarge) as caught:
        await make_store().receive([Upload(name="big.zip", chunks=endless())])
    assert (caught.value.file_name, caught.value.max_bytes) == ("big.zip", 2**20)
    assert len(read) == 11
    assert files_below(tmp_path / "data") == ["darkroom.sqlite", "darkroom.sqlite-shm", "darkroom.sqlite-wal"]


async def test_the_limit_applies_to_all_files_together(make_store: MakeStore) -> None:
    with pytest.raises(DatasetTooLarge, match=r"2\.png"):
        await make_store().receive(uploads({f"{number}.png": b"x" * 400_000 for number in range(3)}))


async def test_an_interrupted_download_leaves_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        await make_store().receive([Upload(name="a.zip", chunks=broken())])
    assert not any((tmp_path / "data/incoming").iterdir())


async def test_several_files_are_one_content_in_any_order(make_store: MakeStore) -> None:
    store = make_store()
    files = {name: name.encode() for name in ("a.png", "a.txt", "../a.png")}
    results = [await store.receive(uploads(files)) for _ in range(2)]
    pair = await store.receive(uploads({"a.txt": b"a.txt", "a.png": b"a.png"}))
    swapped = await store.receive(uploads({"a.png": b"a.png", "a.txt": b"a.txt"}))

    assert results[0].sha256 == results[1].sha256 != pair.sha256
    assert pair.sha256 == swapped.sha256
    assert [file.name for file in results[0].files] == ["a.png", "a.txt", "a-2.png"]
    assert results[0].title == "a.png and 2 more"


@pytest.mark.parametrize("count", [0, 4])
async def test_no_files_and_too_many_files_are_refused(make_store: MakeStore, count: int) -> None:
    with pytest.raises(DatasetRefused):
        await make_store().receive(uploads({f"{number}.png": b"x" for number in range(count)}))


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
def test_file_names_are_made_safe(given: str, plain: str, name: str) -> None:
    assert plain_name(given) == plain
    assert dataset_name(plain) == name


# -- one person among others ---------------------------------------------------------------------------------------


_SLOW = _GOOD.replace("import json", "import time; time.sleep(0.1)\nimport json", 1)


async def test_another_person_is_next_however_much_one_person_hands_in(make_store: MakeStore) -> None:
    store = make_store(_SLOW)
    done: list[int] = []

    async def hand_in(data: bytes, owner: int) -> None:
        await store.prepare(await received(store, data), guild_id=GUILD, owner_id=owner)
        done.append(owner)

    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(hand_in(b"%d" % number, 1))
        await asyncio.sleep(0.05)
        group.create_task(hand_in(b"another", 2))
    assert done.index(2) <= 2
    assert sorted(done) == [1] * 10 + [2]


async def test_a_turn_that_is_given_up_is_the_next_persons() -> None:
    turns, held = Turns(1), list[int]()

    async def hold(person: int, seconds: float = 0.0) -> None:
        async with turns.of(person):
            held.append(person)
            await asyncio.sleep(seconds)

    tasks = [asyncio.create_task(hold(person, 60.0 if person == 1 else 0.0)) for person in (1, 2, 2, 3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert held == [1, 2, 3]


async def test_whoever_waits_for_a_turn_is_told_and_may_give_it_up_while_they_are() -> None:
    turns, told, is_told = Turns(1), list[PreparePhase](), asyncio.Event()

    async def listen(progress: PrepareProgress) -> None:
        told.append(progress.phase)
        is_told.set()
        await asyncio.sleep(0.01)

    async def hold(person: int, seconds: float) -> None:
        with progress_reported(listen):
            async with turns.of(person):
                await asyncio.sleep(seconds)

    first = asyncio.create_task(hold(1, 60))
    await asyncio.sleep(0)
    assert told == []
    second = asyncio.create_task(hold(2, 0))
    await is_told.wait()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await hold(3, 0)
    assert told == [PreparePhase.WAITING]


async def test_refused_files_are_deleted_at_once(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(TooFewImages):
        await prepared(make_store(min_images=10))
    assert [name for name in files_below(tmp_path / "data") if name.endswith(".zip")] == []
    assert (await prepared(make_store())).source.is_dir()


async def test_files_that_others_need_too_are_kept(make_store: MakeStore) -> None:
    strict = make_store(min_images=10)
    first, second = await received(strict), await received(strict)
    with pytest.raises(TooFewImages):
        await strict.prepare(first, guild_id=GUILD, owner_id=5)
    assert first.source.is_dir(), "the second upload of the same files is not examined yet"
    with pytest.raises(TooFewImages):
        await strict.prepare(second, guild_id=GUILD, owner_id=6)
    assert not first.source.exists()

    dataset = await prepared(make_store())
    with pytest.raises(TooFewImages):
        await prepared(strict, guild=GUILD + 1)
    assert dataset.source.is_dir()


async def test_a_person_has_so_many_datasets_in_all_servers(make_store: MakeStore) -> None:
    store = make_store(max_datasets_per_user=2)
    await prepared(store, b"1")
    another = await prepared(store, b"2", guild=GUILD + 1)
    with pytest.raises(TooManyDatasets) as refused:
        await prepared(store, b"3")
    assert (refused.value.datasets, refused.value.max_datasets) == (3, 2)
    with pytest.raises(TooManyDatasets):
        # Before a byte is downloaded.
        await store.receive([Upload(name="a.zip", chunks=never())], owner_id=5)
    # The same files again are no other dataset.
    assert (await prepared(store, b"2", guild=GUILD + 1)).id == another.id
    await store.delete(another.id)
    await prepared(store, b"3")


async def test_a_person_stores_so_many_bytes(make_store: MakeStore) -> None:
    store = make_store(max_dataset_mib=2, max_stored_mib_per_user=1)
    dataset = await prepared(store, b"x" * 600_000)
    with pytest.raises(TooManyDatasets) as refused:
        await prepared(store, b"y" * 600_000)
    assert refused.value.stored_bytes == 1_200_000
    with pytest.raises(TooManyDatasets):
        await store.add(dataset.id, await received(store, b"z" * 448_577, "more.zip"))
    grown = await store.add(dataset.id, await received(store, b"z" * 400_000, "more.zip"))
    with pytest.raises(TooManyDatasets):
        await prepared(store, b"y" * 100_000)
    assert grown.bytes == 1_000_000


async def test_nothing_is_downloaded_to_a_full_disk(make_store: MakeStore) -> None:
    with pytest.raises(DiskAlmostFull):
        await make_store(min_free_bytes=2**60).receive([Upload(name="a.zip", chunks=never())])


async def never() -> AsyncIterator[bytes]:
    raise AssertionError("it is downloaded")
    yield b""


@pytest.mark.skipif(sys.platform != "linux", reason="limits files on Linux only")
async def test_no_file_is_larger_than_what_an_upload_may_inflate_to(make_store: MakeStore, tmp_path: Path) -> None:
    script = """
import pathlib, sys, time
time.sleep(0.2)
pathlib.Path(sys.argv[1]).write_text(" ".join(sys.argv))
open(sys.argv[1] + ".spool", "wb").truncate(256 * 2**20 + 1)
"""
    with pytest.raises(PrepareFailed):
        await prepared(make_store(script))
    assert f"--limit max_archive_bytes={256 * 2**20}" in (tmp_path / "runs").read_text()
    assert (tmp_path / "runs.spool").stat().st_size == 0


# -- preparing -----------------------------------------------------------------------------------------------------


async def test_a_dataset_is_found_by_name_number_and_search(make_store: MakeStore) -> None:
    store = make_store()
    dataset = await prepared(store)

    assert (dataset.name, dataset.counts.kept, dataset.summary) == ("momo", 9, "Nine images.")
    assert dataset.folder.is_absolute()
    assert await store.get(dataset.id) == dataset == await store.named(GUILD, "MOMO")
    assert [found.name for found in await store.search(GUILD, "om")] == ["momo"]
    assert (await store.report(dataset)).digest == "d"
    assert await store.search(GUILD + 1) == []
    for missing in (store.get(99), store.named(GUILD + 1, "momo")):
        with pytest.raises(NoSuchDataset):
            await missing


async def test_the_same_content_is_prepared_once_and_is_one_dataset_per_server(
    make_store: MakeStore, runs: Callable[[], int]
) -> None:
    store = make_store()
    datasets = await asyncio.gather(*(prepared(store, guild=guild) for guild in (GUILD, GUILD, GUILD + 1)))

    assert runs() == 1
    assert datasets[0] == datasets[1]
    assert datasets[2].id != datasets[0].id
    assert datasets[2].folder == datasets[0].folder


async def test_a_server_does_not_see_what_another_one_calls_the_same_bytes(make_store: MakeStore) -> None:
    store = make_store()
    theirs = await prepared(store, name="unreleased-product.zip")
    ours = await prepared(store, name="x.zip", guild=GUILD + 1)

    assert ours.folder != theirs.folder
    assert [path.name for path in ours.source.iterdir()] == ["x.zip"]


async def test_other_content_of_the_same_name_gets_a_number(make_store: MakeStore) -> None:
    store = make_store()
    names = [(await prepared(store, data)).name for data in (b"1", b"2", b"3")]
    assert names == ["momo", "momo-2", "momo-3"]


async def test_a_refusal_has_the_message_of_the_trainer(make_store: MakeStore, db: Database) -> None:
    store = make_store(
        "import sys\nprint('noise', file=sys.stderr)\nprint('It is no zip: x.', file=sys.stderr)\nsys.exit(3)"
    )
    with pytest.raises(DatasetRefused, match=r"^It is no zip: x\.$"):
        await prepared(store)
    assert len(await db.all("SELECT * FROM dataset WHERE name = 'momo'")) == 0
    assert (await prepared(make_store())).name == "momo"


async def test_too_few_images_are_refused(make_store: MakeStore) -> None:
    counts = _COUNTS | {"images": 4, "kept": 3, "dropped": 1}
    with pytest.raises(TooFewImages) as caught:
        await prepared(make_store(report=_REPORT | {"counts": counts}))
    assert (caught.value.kept, caught.value.dropped, caught.value.needed) == (3, 1, 5)


async def test_a_preparation_that_takes_too_long_is_killed_with_its_helpers(
    make_store: MakeStore, tmp_path: Path
) -> None:
    script = (
        "import pathlib, subprocess, sys, time\n"
        "helper = subprocess.Popen(['sleep', '1000'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(helper.pid))\n"
        "time.sleep(1000)"
    )
    with pytest.raises(PrepareFailed, match="longer than 5 s"):
        await prepared(make_store(script, timeout_s=5))
    pid = int((tmp_path / "runs").read_text())
    await eventually(lambda: identify(pid) is None)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory on Linux only")
async def test_a_preparation_that_needs_too_much_memory_fails(make_store: MakeStore) -> None:
    with pytest.raises(PrepareFailed, match=r"out of memory at 1024 MiB"):
        await prepared(make_store("import time; time.sleep(0.2); x = bytearray(2 * 2**30)", memory_mib=1024))


async def test_an_incomplete_folder_is_prepared_again(
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


async def test_an_unreadable_report_is_an_error(make_store: MakeStore) -> None:
    with pytest.raises(PrepareFailed, match="cannot be read"):
        await prepared(make_store(report={"version": 99}))


async def test_the_sweep_deletes_only_old_folders_that_are_no_dataset(make_store: MakeStore, tmp_path: Path) -> None:
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


async def test_a_report_of_another_version_is_prepared_again(
    make_store: MakeStore, db: Database, runs: Callable[[], int]
) -> None:
    first = await prepared(make_store())
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE dataset SET report_version = 0, digest = 'old'")
    (first.folder / "report.json").write_text('{"version": 0}')

    again = await prepared(make_store())

    assert again == first
    assert runs() == 2


async def test_the_report_is_read_from_disk_once(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []

    def counted(folder: Path) -> DatasetReport:
        reads.append(folder)
        return read_report(folder)

    monkeypatch.setattr("bot.datasets.prepare_runner.read_report", counted)
    store = make_store()
    content = await received(store)
    dataset = await store.prepare(content, guild_id=GUILD, owner_id=5)
    for _ in range(3):
        assert (await store.prepare(content, guild_id=GUILD, owner_id=5)).digest == "d"
        await store.report(dataset)
    # The first attempt finds no folder yet.
    assert len(reads) == 2
