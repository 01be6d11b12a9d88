"""Each image is seen as often as requested, in an order that is a function of seed and epoch."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trainer.dataset.split.mixing import Portion, Repeats
from trainer.training.batches import assign_views, epoch_steps, steps_per_epoch

Sizes = list[tuple[int, int]]

SIZE = st.sampled_from([(64, 64), (80, 48), (48, 80)])
SIZES = st.lists(SIZE, min_size=1, max_size=40)
COUNTS = st.integers(1, 4)
MIXED = st.lists(st.tuples(SIZE, st.sampled_from(["fixed", "a", "b"]), COUNTS), min_size=1, max_size=40)


@given(sizes=SIZES, batch_size=st.integers(1, 9), micro=COUNTS, seed=st.integers(0, 99), data=st.data())
def test_every_image_is_seen_as_often_as_requested(
    sizes: Sizes, batch_size: int, micro: int, seed: int, data: st.DataObject
) -> None:
    repeats = data.draw(st.lists(COUNTS, min_size=len(sizes), max_size=len(sizes)))
    micro = min(micro, batch_size)
    steps = epoch_steps(sizes, repeats=repeats, batch_size=batch_size, micro_batch_size=micro, seed=seed, epoch=1)

    seen = Counter(index for step in steps for batch in step for index in batch)

    assert seen == dict(enumerate(repeats))


@given(sizes=SIZES, batch_size=st.integers(1, 9), micro=COUNTS, epoch=st.integers(1, 50))
def test_a_micro_batch_has_one_size_and_a_step_is_at_most_a_batch(
    sizes: Sizes, batch_size: int, micro: int, epoch: int
) -> None:
    micro = min(micro, batch_size)
    ones = [1] * len(sizes)
    steps = epoch_steps(sizes, repeats=ones, batch_size=batch_size, micro_batch_size=micro, seed=1, epoch=epoch)

    assert all(len({sizes[index] for index in batch}) == 1 for step in steps for batch in step)
    assert all(len(batch) <= micro for step in steps for batch in step)
    assert all(sum(map(len, step)) < batch_size + micro for step in steps)
    assert len(steps) == steps_per_epoch(
        Counter(sizes), views=len(sizes), batch_size=batch_size, micro_batch_size=micro
    )


@given(
    images=MIXED, shares=st.tuples(st.integers(1, 30), st.integers(1, 30)), batch_size=st.integers(1, 9), micro=COUNTS
)
def test_every_epoch_of_a_mix_has_the_same_number_of_steps(
    images: list[tuple[tuple[int, int], str, int]], shares: tuple[int, int], batch_size: int, micro: int
) -> None:
    micro = min(micro, batch_size)
    sizes = [size for size, _, _ in images]
    repeats = Repeats(
        fixed=tuple(count if name == "fixed" else 0 for _, name, count in images),
        portions=tuple(
            Portion(source=number, views=views, repeats=counts)
            for number, (name, views) in enumerate(zip("ab", shares, strict=True))
            if (counts := {index: count for index, (_, own, count) in enumerate(images) if own == name})
        ),
    )
    step_count = steps_per_epoch(
        repeats.most_by_size(sizes), views=repeats.views, batch_size=batch_size, micro_batch_size=micro
    )
    for epoch in range(1, 6):
        views = repeats.of_epoch(sizes, epoch)
        steps = epoch_steps(
            sizes,
            repeats=views,
            batch_size=batch_size,
            micro_batch_size=micro,
            seed=1,
            epoch=epoch,
            step_count=step_count,
        )
        seen = Counter(index for step in steps for batch in step for index in batch)
        assert len(steps) == step_count
        assert all(step and all(step) for step in steps)
        assert all(sum(map(len, step)) < batch_size + micro for step in steps)
        assert all(len({sizes[index] for index in batch}) == 1 for step in steps for batch in step)
        assert seen == +Counter(dict(enumerate(views)))


def test_the_order_differs_between_epochs_and_is_the_same_for_the_same_epoch() -> None:
    def order(epoch: int, seed: int = 3) -> list[object]:
        return list(epoch_steps([1] * 20, repeats=[1] * 20, batch_size=4, micro_batch_size=4, seed=seed, epoch=epoch))

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=4)


STEPS = [((0, 1), (0,)), ((1, 0), (2,)), ((0, 0),)]


def assigned(epoch: int, seed: int = 0) -> list[tuple[int, int, int]]:
    views = assign_views(STEPS, contents="abc", variants=[3, 1, 5], captions=[1, 4, 1], seed=seed, epoch=epoch)
    assert [[[view.index for view in micro] for micro in step] for step in views] == [
        [list(micro) for micro in step] for step in STEPS
    ]
    return [(view.index, view.variant, view.caption) for step in views for micro in step for view in micro]


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
