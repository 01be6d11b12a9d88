"""A decoder that dies or hangs takes one picture with it, not the job."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.trainer.dataset.making import png
from trainer.dataset.images import decode_workers
from trainer.dataset.images.decode_workers import Decoded, Job, Outcome, decode_all
from trainer.dataset.images.decoding import PictureError
from trainer.dataset.limits import Limits
from trainer.errors import DecodersError
from trainer.protocol.report import FindingKind

_decode_one = decode_workers.decode_one


def dies_on_the_third(job: Job, limits: Limits) -> Outcome:
    if job.number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _decode_one(job, limits)


def hangs_on_the_second(job: Job, limits: Limits) -> Outcome:
    signal.setitimer(signal.ITIMER_PROF, limits.decode_cpu_s)
    while job.number == 2:
        pass
    return _decode_one(job, limits)


def jobs(folder: Path, count: int) -> list[Job]:
    return [
        Job(
            number=number,
            data=png(number),
            picture_path=folder / f"{number}.png",
            thumbnail_path=folder / f"{number}.t.png",
            mask_folder=folder / "masks",
        )
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize(("decoder", "victim"), [(dies_on_the_third, 3), (hangs_on_the_second, 2)])
def test_a_dead_decoder_costs_only_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: object, victim: int
) -> None:
    monkeypatch.setattr(decode_workers, "decode_one", decoder)
    outcomes = dict(decode_all(jobs(tmp_path, 9), Limits(decode_cpu_s=1), processes=2))
    assert list(outcomes) == list(range(1, 10))
    lost = outcomes.pop(victim)
    assert isinstance(lost, PictureError)
    assert lost.kind is FindingKind.CORRUPT
    assert all(isinstance(outcome, Decoded) for outcome in outcomes.values())


def test_pictures_are_drawn_only_as_fast_as_they_are_decoded(tmp_path: Path) -> None:
    drawn: list[int] = []

    def source() -> object:
        for job in jobs(tmp_path, 20):
            drawn.append(job.number)
            yield job

    for number, _ in decode_all(source(), Limits(), processes=2):  # type: ignore[arg-type]
        assert len(drawn) <= number + 4


def dies_at_once(limits: Limits) -> None:
    os._exit(1)


def test_decoders_that_cannot_start_are_no_picture_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_workers, "_confine", dies_at_once)
    with pytest.raises(DecodersError, match="cannot be started on this machine"):
        list(decode_all(jobs(tmp_path, 2), Limits(), processes=1))
