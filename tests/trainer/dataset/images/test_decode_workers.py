"""A decoder that crashes or hangs costs one image."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.dataset.image_files import encoded, png
from trainer.dataset.dataset_folder import IMAGES, THUMBNAILS
from trainer.dataset.images import decode_workers
from trainer.dataset.images.decode_workers import DecodeResult, DecodeTask, decode_all
from trainer.dataset.images.decoding import ImageError
from trainer.dataset.images.image_record import ImagePixels
from trainer.dataset.input_files import Limits
from trainer.errors import DecodersError
from trainer.protocol.report import FindingKind

_decode_one = decode_workers.decode_one


def crashes_on_the_third(task: DecodeTask, limits: Limits) -> DecodeResult:
    if task.number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _decode_one(task, limits)


def hangs_on_the_second(task: DecodeTask, limits: Limits) -> DecodeResult:
    signal.setitimer(signal.ITIMER_PROF, limits.decode_cpu_s)
    while task.number == 2:
        pass
    return _decode_one(task, limits)


def notes_and_hangs_on_the_second(task: DecodeTask, limits: Limits) -> DecodeResult:
    with (task.root / f"begun-{task.number}").open("a") as file:
        file.write("x")
    return decode_one_or_hang(task, limits)


def decode_one_or_hang(task: DecodeTask, limits: Limits) -> DecodeResult:
    """As `decode_one`, with a decoder that never ends for the second image."""
    if task.number == 2:
        decode_workers._decode_and_store = hang
    return _decode_one(task, limits)


def hang(task: DecodeTask, limits: Limits) -> ImagePixels:
    while True:
        pass


def tasks(folder: Path, count: int) -> list[DecodeTask]:
    for name in (IMAGES, THUMBNAILS):
        (folder / name).mkdir(exist_ok=True)
    return [DecodeTask(number=number, data=png(number), root=folder) for number in range(1, count + 1)]


@pytest.mark.parametrize(("decoder", "victim"), [(crashes_on_the_third, 3), (hangs_on_the_second, 2)])
def test_a_crashed_decoder_costs_only_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: object, victim: int
) -> None:
    monkeypatch.setattr(decode_workers, "decode_one", decoder)
    results = dict(decode_all(tasks(tmp_path, 9), Limits(decode_cpu_s=1), processes=2))
    assert list(results) == list(range(1, 10))
    lost = results.pop(victim)
    assert isinstance(lost, ImageError)
    assert lost.kind is FindingKind.CORRUPT
    assert all(isinstance(result, ImagePixels) for result in results.values())


def test_tasks_are_taken_only_as_fast_as_images_are_decoded(tmp_path: Path) -> None:
    taken: list[int] = []

    def source() -> Iterator[DecodeTask]:
        for task in tasks(tmp_path, 80):
            taken.append(task.number)
            yield task

    for number, _result in decode_all(source(), Limits(), processes=2):
        assert len(taken) <= number + 4 * decode_workers._BATCH


def test_small_files_are_sent_together_and_cached_ones_not_at_all(tmp_path: Path) -> None:
    [before, *_others] = dict(decode_all(tasks(tmp_path, 1), Limits(), processes=1)).values()
    assert isinstance(before, ImagePixels)
    small = tasks(tmp_path, 12)
    large = DecodeTask(number=13, data=bytes(decode_workers._BATCH_BYTES), root=tmp_path)

    batches = list(decode_workers._batches([*small, large], lambda task: before if task.number == 3 else None))

    assert [[task.number for task in batch] for batch, _reused in batches] == [[1, 2], [3], [*range(4, 12)], [12, 13]]
    assert [reused for _batch, reused in batches] == [None, [before], None, None]


def test_an_image_that_took_its_time_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_workers, "decode_one", notes_and_hangs_on_the_second)

    results = dict(decode_all(tasks(tmp_path, 4), Limits(decode_cpu_s=1), processes=2))

    lost = results.pop(2)
    assert isinstance(lost, ImageError)
    assert "more than 1 s of CPU time" in lost.message
    assert all(isinstance(result, ImagePixels) for result in results.values())
    assert (tmp_path / "begun-2").read_text() == "x"
    assert not list(tmp_path.glob(".decoder*"))


#: Decodes with five decoders, and prints the most private memory that all processes had at once, MiB.
MEASURED = """
import re, sys, threading, time
from pathlib import Path
from trainer.dataset.dataset_folder import IMAGES, THUMBNAILS
from trainer.dataset.images.decode_workers import DecodeTask, decode_all
from trainer.dataset.images.image_record import ImagePixels
from trainer.dataset.input_files import Limits

def private(folder):
    try:
        return sum(int(kb) for kb in re.findall(r"Private_\\w+:\\s+(\\d+)", (folder / "smaps_rollup").read_text()))
    except OSError:
        return 0

def measure():
    while not is_over:
        ours = [each.parent for each in Path("/proc").glob("[0-9]*/stat") if " %d " % group in read(each)]
        peaks.append(sum(private(folder) for folder in ours) >> 10)
        time.sleep(0.02)

def read(path):
    try:
        return path.read_text()
    except OSError:
        return ""

if __name__ == "__main__":
    import os
    os.setpgid(0, 0)
    group, is_over, peaks, root = os.getpgid(0), False, [], Path(sys.argv[1])
    for name in (IMAGES, THUMBNAILS):
        (root / name).mkdir()
    watch = threading.Thread(target=measure)
    watch.start()
    tasks = [DecodeTask(number=n, data=(root / "large.png").read_bytes(), root=root) for n in range(1, 9)]
    results = dict(decode_all(tasks, Limits(memory_bytes=1536 << 20), processes=5))
    is_over = True
    watch.join()
    assert all(isinstance(result, ImagePixels) for result in results.values()), results
    print(max(peaks))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory on Linux only")
def test_as_many_images_are_decoded_at_once_as_there_is_memory_for(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(encoded(Image.new("RGBA", (6000, 6000), (200, 30, 30, 120)), compress_level=1))
    script = tmp_path / "measured.py"
    script.write_text(MEASURED)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}

    output = subprocess.run([sys.executable, str(script), str(tmp_path)], env=environ, capture_output=True, check=True)

    # Five at once would take 1,800 MiB.
    assert int(output.stdout) < 1536


def exits_at_once(*_arguments: object) -> None:
    os._exit(1)


def test_decoders_that_cannot_start_are_an_error_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_workers, "_confine", exits_at_once)
    with pytest.raises(DecodersError, match="cannot be started on this machine"):
        list(decode_all(tasks(tmp_path, 2), Limits(), processes=1))


def test_each_pixel_counts_for_the_digest_of_an_image() -> None:
    pixels = np.zeros((40, 30, 3), np.uint8)
    digests = {decode_workers._pixels_sha256(pixels)}
    for row in range(40):
        changed = pixels.copy()
        changed[row, 7, 1] = 1
        digests.add(decode_workers._pixels_sha256(changed))
    assert len(digests) == 41
    assert decode_workers._pixels_sha256(pixels.reshape(30, 40, 3)) not in digests


def test_the_server_of_the_decoders_has_loaded_all_that_they_need() -> None:
    code = """
import multiprocessing, sys
from trainer.dataset.images.decode_server import server_context, start_server
if __name__ == "__main__":
    start_server()
    with server_context().Pool(1) as pool:
        print("cv2" in sys.modules, pool.apply(eval, ("set(__import__('sys').modules)",)) >= {
            "trainer.dataset.images.decode_workers", "trainer.dataset.images.near_duplicates"
        })
"""
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == ["False", "True"]


def test_decoders_do_not_load_what_reads_captions() -> None:
    """It would take a seventh of their start."""
    code = "import sys; import trainer.dataset.images.decode_workers; print('trainer.dataset.captions' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "False"
