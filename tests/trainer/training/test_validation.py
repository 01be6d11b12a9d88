"""The frozen triples stay frozen, whatever the batch size, the order, or the other pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.protocol.spec import Validation
from trainer.training.validation import Triple, freeze_triples, keep_triples, measure, summarize

SETTINGS = Validation(timesteps=4, draws=2)
HASHES = [f"{index:064x}" for index in range(9)]


def test_every_picture_is_asked_in_every_band_as_often() -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000)

    assert Counter((triple.image, triple.timestep // 250) for triple in triples) == {
        (image, band): 2 for image in range(len(HASHES)) for band in range(4)
    }


def test_a_picture_keeps_its_questions_when_others_come_and_go() -> None:
    def questions(hashes: Sequence[str]) -> set[tuple[str, int, int]]:
        return {(t.pixels_sha256, t.timestep, t.noise_seed) for t in freeze_triples(hashes, SETTINGS, 1000)}

    assert questions(HASHES[3:6]) < questions(HASHES)
    assert questions(list(reversed(HASHES))) == questions(HASHES)


def test_noise_seeds_do_not_repeat() -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000)

    assert len({triple.noise_seed for triple in triples}) == len(triples)


def test_no_more_pictures_than_allowed_are_used_and_the_choice_is_stable() -> None:
    few = SETTINGS.model_copy(update={"max_images": 3})

    chosen = {triple.pixels_sha256 for triple in freeze_triples(HASHES, few, 1000)}
    chosen_later = {triple.pixels_sha256 for triple in freeze_triples(list(reversed(HASHES)), few, 1000)}

    assert len(chosen) == 3
    assert chosen == chosen_later


def test_once_written_the_file_decides(tmp_path: Path) -> None:
    first = keep_triples(tmp_path / "v" / "triples.json", freeze_triples(HASHES, SETTINGS, 1000))
    again = keep_triples(tmp_path / "v" / "triples.json", freeze_triples(HASHES[:2], SETTINGS, 1000))

    assert again == first


@given(batch_size=st.integers(1, 20))
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000)
    sizes = [(64, 64) if index % 2 else (80, 48) for index in range(len(HASHES))]

    def losses(chunk: Sequence[Triple]) -> list[float]:
        assert len({sizes[triple.image] for triple in chunk}) == 1
        return [float(triple.noise_seed % 1000) for triple in chunk]

    measured = measure(triples, size_of=sizes, batch_size=batch_size, losses=losses)

    assert measured == [triple.noise_seed % 1000 for triple in triples]


def test_the_ratio_gives_each_band_the_same_weight_however_large_its_loss() -> None:
    triples = [Triple(image=0, pixels_sha256="a", timestep=t, noise_seed=t) for t in (10, 20, 600, 700)]

    summary = summarize(triples, [0.8, 0.8, 0.01, 0.01], [1.0, 1.0, 0.02, 0.02], bands=2, schedule_steps=1000)

    assert summary.loss == pytest.approx(0.405)
    assert [band.ratio for band in summary.bands] == pytest.approx([0.8, 0.5])
    assert summary.ratio == pytest.approx(0.65)
    assert [(band.first_timestep, band.last_timestep) for band in summary.bands] == [(0, 499), (500, 999)]
