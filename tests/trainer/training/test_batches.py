"""Each image is seen as often as requested, in steps that depend on nothing but seed and epoch."""

from __future__ import annotations

from collections import Counter
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.split.mixing import Portion, Repeats
from trainer.tasks.examples import ImageView
from trainer.training.batches import assign_views, epoch_steps, split_step

Sizes = list[tuple[int, int]]

SIZE = st.sampled_from([(64, 64), (80, 48), (48, 80)])
SIZES = st.lists(SIZE, min_size=1, max_size=40)
COUNTS = st.integers(1, 4)
MIXED = st.lists(st.tuples(SIZE, st.sampled_from(["fixed", "a", "b"]), COUNTS), min_size=1, max_size=40)
#: Number of images in each bucket.
BUCKETS = st.lists(st.integers(1, 20), min_size=1, max_size=6)
BATCH_SIZE = st.integers(1, 12)


@given(sizes=SIZES, batch_size=BATCH_SIZE, seed=st.integers(0, 99), data=st.data())
def test_every_image_is_seen_as_often_as_requested(
    sizes: Sizes, batch_size: int, seed: int, data: st.DataObject
) -> None:
    repeats = data.draw(st.lists(COUNTS, min_size=len(sizes), max_size=len(sizes)))
    steps = epoch_steps(sizes, repeats=repeats, batch_size=batch_size, seed=seed, epoch=1)

    assert Counter(index for step in steps for index in step) == dict(enumerate(repeats))


@given(buckets=BUCKETS, batch_size=BATCH_SIZE, epoch=st.integers(1, 50))
def test_every_step_but_the_last_has_the_batch_size(buckets: list[int], batch_size: int, epoch: int) -> None:
    sizes = [bucket for bucket, count in enumerate(buckets) for _ in range(count)]
    *full, last = epoch_steps(sizes, repeats=[1] * len(sizes), batch_size=batch_size, seed=1, epoch=epoch)

    assert {len(step) for step in full} <= {batch_size}
    assert len(last) == len(sizes) - batch_size * len(full)
    assert len(full) + 1 == ceil(len(sizes) / batch_size)
    # Images of one bucket go through the model together: a bucket that fills steps has steps of its own.
    of_one_bucket = Counter(sizes[step[0]] for step in [*full, last] if len({sizes[index] for index in step}) == 1)
    assert all(of_one_bucket[bucket] >= count // batch_size for bucket, count in enumerate(buckets))


@given(
    buckets=BUCKETS,
    batch_size=BATCH_SIZE,
    micro_batch=st.integers(1, 12),
    processes=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_micro_batches_and_processes_part_a_step_without_changing_it(
    buckets: list[int], batch_size: int, micro_batch: int, processes: int, seed: int
) -> None:
    sizes = [bucket for bucket, count in enumerate(buckets) for _ in range(count)]
    steps = epoch_steps(sizes, repeats=[1] * len(sizes), batch_size=batch_size, seed=seed, epoch=1)

    for step in steps:
        views = tuple(ImageView(index=index) for index in step)
        parts = list(split_step(views, sizes, micro_batch))
        shares = [parts[rank::processes] for rank in range(processes)]

        positions = {
            first + offset: view for share in shares for first, part in share for offset, view in enumerate(part)
        }
        # What an image draws follows from its position in the step.
        assert positions == dict(enumerate(views))
        assert all(len(part) <= micro_batch and len({sizes[view.index] for view in part}) == 1 for _, part in parts)
        # As few as its buckets allow: only the last micro-batch of a bucket is partial.
        in_step = Counter(sizes[index] for index in step)
        assert len(parts) == sum(ceil(count / micro_batch) for count in in_step.values())


@given(images=MIXED, shares=st.tuples(st.integers(1, 30), st.integers(1, 30)), batch_size=BATCH_SIZE)
def test_every_epoch_of_a_mix_has_the_same_number_of_steps(
    images: list[tuple[tuple[int, int], str, int]], shares: tuple[int, int], batch_size: int
) -> None:
    sizes = [size for size, _, _ in images]
    repeats = Repeats(
        fixed=tuple(count if name == "fixed" else 0 for _, name, count in images),
        portions=tuple(
            Portion(source=number, views=views, repeats=counts)
            for number, (name, views) in enumerate(zip("ab", shares, strict=True))
            if (counts := {index: count for index, (_, own, count) in enumerate(images) if own == name})
        ),
    )
    for epoch in range(1, 6):
        views = repeats.of_epoch(sizes, epoch)
        steps = epoch_steps(sizes, repeats=views, batch_size=batch_size, seed=1, epoch=epoch)
        assert len(steps) == ceil(repeats.views / batch_size)
        assert all(len(step) == batch_size for step in steps[:-1])
        assert Counter(index for step in steps for index in step) == +Counter(dict(enumerate(views)))


def test_the_order_differs_between_epochs_and_is_the_same_for_the_same_epoch() -> None:
    def order(epoch: int, seed: int = 3) -> list[object]:
        return list(epoch_steps([1] * 20, repeats=[1] * 20, batch_size=4, seed=seed, epoch=epoch))

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=4)


STEPS = [(0, 1, 0), (1, 0, 2), (0, 0)]


def assigned(epoch: int, seed: int = 0) -> list[tuple[int, int, int]]:
    views = assign_views(STEPS, contents="abc", variants=[3, 1, 5], captions=[1, 4, 1], seed=seed, epoch=epoch)
    assert [tuple(view.index for view in step) for step in views] == STEPS
    return [(view.index, view.variant, view.caption) for step in views for view in step]


def test_all_variants_and_captions_of_an_image_are_seen_before_one_repeats() -> None:
    views = assigned(epoch=1)

    shown = [variant for index, variant, _ in views if index == 0]
    assert sorted(shown[:3]) == [0, 1, 2]
    assert shown[3:] == shown[:2]
    assert len({caption for index, _, caption in views if index == 1}) == 2
    assert all(variant == 0 for index, variant, _ in views if index == 1)


def test_views_are_a_function_of_seed_and_epoch() -> None:
    assert assigned(epoch=1) == assigned(epoch=1)
    assert len({tuple(assigned(epoch=epoch)) for epoch in range(1, 11)}) > 5
    assert len({tuple(assigned(epoch=1, seed=seed)) for seed in range(10)}) > 5


def test_every_variant_is_seen_over_the_epochs() -> None:
    shown = Counter(variant for epoch in range(1, 101) for index, variant, _ in assigned(epoch) if index == 2)

    assert set(shown) == {0, 1, 2, 3, 4}
    assert min(shown.values()) > 8
