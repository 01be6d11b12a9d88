"""Frozen triples do not depend on batch size, order, or other images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.protocol.settings import Validation
from trainer.tasks.task import FrozenLoss
from trainer.training.validation import (
    Triple,
    choose_probes,
    freeze_triples,
    image_ratios,
    load_or_write_triples,
    measure_losses,
    merge_shards,
    summarize_losses,
)

SETTINGS = Validation(timesteps=4, draws=2)
HASHES = [f"{index:064x}" for index in range(9)]


def plain(*losses: float) -> list[FrozenLoss]:
    return [FrozenLoss(plain=loss, training=10 * loss) for loss in losses]


def test_every_image_has_the_same_number_of_triples_in_every_band() -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000)

    assert Counter((triple.image, triple.timestep // 250) for triple in triples) == {
        (image, band): 2 for image in range(len(HASHES)) for band in range(4)
    }


def test_an_image_keeps_its_triples_when_others_are_added_or_removed() -> None:
    def contents(hashes: Sequence[str]) -> set[tuple[str, int, int]]:
        return {(t.pixels_sha256, t.timestep, t.noise_seed) for t in freeze_triples(hashes, SETTINGS, 1000)}

    assert contents(HASHES[3:6]) < contents(HASHES)
    assert contents(list(reversed(HASHES))) == contents(HASHES)


def test_noise_seeds_do_not_repeat() -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000)

    assert len({triple.noise_seed for triple in triples}) == len(triples)


def test_at_most_max_images_are_used_and_the_choice_is_stable() -> None:
    few = SETTINGS.model_copy(update={"max_images": 3})

    chosen = {triple.pixels_sha256 for triple in freeze_triples(HASHES, few, 1000)}
    chosen_later = {triple.pixels_sha256 for triple in freeze_triples(list(reversed(HASHES)), few, 1000)}

    assert len(chosen) == 3
    assert chosen == chosen_later


def test_written_triples_are_used_from_then_on(tmp_path: Path) -> None:
    first = load_or_write_triples(tmp_path / "v" / "triples.json", freeze_triples(HASHES, SETTINGS, 1000))
    again = load_or_write_triples(tmp_path / "v" / "triples.json", freeze_triples(HASHES[:2], SETTINGS, 1000))

    assert again == first


def test_probes_are_chosen_by_hash_and_hardly_change_when_images_are_added() -> None:
    chosen = {HASHES[index] for index in choose_probes(HASHES, 4, 555)}
    with_one_more = {[*HASHES, "f" * 64][index] for index in choose_probes([*HASHES, "f" * 64], 4, 555)}

    assert len(chosen) == 4
    assert len(chosen & with_one_more) >= 3
    assert chosen == {list(reversed(HASHES))[index] for index in choose_probes(list(reversed(HASHES)), 4, 555)}
    assert chosen != {HASHES[index] for index in choose_probes(HASHES, 4, 556)}
    assert choose_probes(HASHES, 0, 555) == ()


def test_probes_have_the_triples_that_they_have_among_all_images() -> None:
    probes = freeze_triples(HASHES, SETTINGS, 1000, images=(2, 5))

    assert {triple.image for triple in probes} == {2, 5}
    assert set(probes) < set(freeze_triples(HASHES, SETTINGS, 1000))


def test_without_noise_each_image_has_one_triple() -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1)

    assert [(triple.image, triple.timestep) for triple in triples] == [(index, 0) for index in range(9)]
    summary = summarize_losses(triples, plain(*[0.5] * 9), plain(*[1.0] * 9), bands=4, schedule_steps=1)
    assert [(band.first_timestep, band.last_timestep, band.ratio) for band in summary.bands] == [(0, 0, 0.5)]


@given(batch_size=st.integers(1, 20), processes=st.integers(1, 5))
def test_neither_the_batch_size_nor_the_number_of_processes_changes_anything(batch_size: int, processes: int) -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000)
    sizes = [(64, 64) if index % 2 else (80, 48) for index in range(len(HASHES))]

    def losses(chunk: Sequence[Triple]) -> list[FrozenLoss]:
        assert len({sizes[triple.image] for triple in chunk}) == 1
        return plain(*[float(triple.noise_seed % 1000) for triple in chunk])

    shards = [
        measure_losses(
            triples, size_of=sizes, batch_size=batch_size, losses=losses, shard=slice(process, None, processes)
        )
        for process in range(processes)
    ]

    assert sum(map(len, shards)) == len(triples)
    assert merge_shards(shards, len(triples)) == plain(*[triple.noise_seed % 1000 for triple in triples])


def test_processes_share_the_batches_evenly() -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000)

    shards = [
        measure_losses(
            triples,
            size_of=[0] * 9,
            batch_size=6,
            losses=lambda c: plain(*[1.0] * len(c)),
            shard=slice(process, None, 3),
        )
        for process in range(3)
    ]

    assert [len(part) for part in shards] == [24, 24, 24]


def test_a_missing_shard_is_an_error() -> None:
    with pytest.raises(AssertionError, match="3 triples, but 1"):
        merge_shards([{0: plain(1.0)[0]}], 3)


def test_the_ratio_gives_each_band_the_same_weight_however_large_its_loss() -> None:
    triples = [Triple(image=0, pixels_sha256="a", timestep=t, noise_seed=t) for t in (10, 20, 600, 700)]

    summary = summarize_losses(
        triples, plain(0.8, 0.8, 0.01, 0.01), plain(1.0, 1.0, 0.02, 0.02), bands=2, schedule_steps=1000
    )

    assert summary.loss == pytest.approx(0.405)
    assert summary.training_loss == pytest.approx(4.05)
    assert [band.ratio for band in summary.bands] == pytest.approx([0.8, 0.5])
    assert [band.loss for band in summary.bands] == pytest.approx([0.8, 0.01])
    assert summary.ratio == pytest.approx(0.65)
    assert [(band.first_timestep, band.last_timestep) for band in summary.bands] == [(0, 499), (500, 999)]


def test_a_band_without_triples_is_omitted() -> None:
    triples = [Triple(image=0, pixels_sha256="a", timestep=t, noise_seed=t) for t in (10, 900)]

    summary = summarize_losses(triples, plain(0.8, 0.2), plain(1.0, 1.0), bands=4, schedule_steps=1000)

    assert [(band.first_timestep, band.ratio) for band in summary.bands] == [(0, 0.8), (750, 0.2)]
    assert summary.ratio == pytest.approx(0.5)


def test_the_summary_has_an_interval_unless_there_are_too_few_images() -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000)
    base = plain(*[1.0 + triple.image for triple in triples])
    losses = plain(*[(1.0 + triple.image) * (0.6 + 0.02 * triple.image) for triple in triples])

    summary = summarize_losses(triples, losses, base, bands=4, schedule_steps=1000)
    few = [index for index, triple in enumerate(triples) if triple.image < 4]
    of_few = summarize_losses(
        [triples[index] for index in few], [losses[index] for index in few], [base[index] for index in few], 4, 1000
    )

    assert summary.ratio_low is not None
    assert summary.ratio_high is not None
    assert 0.6 < summary.ratio_low < summary.ratio < summary.ratio_high < 0.76
    assert of_few.ratio_low is None
    assert of_few.ratio_high is None


def test_near_duplicates_do_not_narrow_the_interval() -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000)
    base = plain(*[1.0] * len(triples))
    losses = plain(*[0.5 + 0.1 * (triple.image // 2) for triple in triples])

    alone = summarize_losses(triples, losses, base, 4, 1000)
    grouped = summarize_losses(triples, losses, base, 4, 1000, groups=[index // 2 for index in range(9)])

    assert alone.ratio_low is not None
    assert grouped.ratio_low is not None
    assert grouped.ratio == alone.ratio
    assert grouped.ratio_low < alone.ratio_low - 0.05


def test_each_image_has_its_own_ratio() -> None:
    triples = freeze_triples(HASHES, SETTINGS, 1000, images=(1, 4))
    base = plain(*[2.0] * len(triples))
    losses = plain(*[1.0 if triple.image == 1 else 1.8 for triple in triples])

    assert image_ratios(triples, losses, base, 4, 1000) == pytest.approx({1: 0.5, 4: 0.9})
