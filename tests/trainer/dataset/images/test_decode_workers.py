"""A decoder that crashes or hangs costs one image."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.dataset.image_files import png
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
        for task in tasks(tmp_path, 20):
            taken.append(task.number)
            yield task

    for number, _result in decode_all(source(), Limits(), processes=2):
        assert len(taken) <= number + 4


def exits_at_once(limits: Limits) -> None:
    os._exit(1)


def test_decoders_that_cannot_start_are_an_error_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_workers, "_confine", exits_at_once)
    with pytest.raises(DecodersError, match="cannot be started on this machine"):
        list(decode_all(tasks(tmp_path, 2), Limits(), processes=1))
