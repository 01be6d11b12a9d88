"""Each picture is seen as often as it was asked for, and the order is a function of seed and epoch."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trainer.training.batches import epoch_steps, steps_per_epoch

SIZES = st.lists(st.sampled_from([(64, 64), (80, 48), (48, 80)]), min_size=1, max_size=40)
COUNTS = st.integers(1, 4)


@given(sizes=SIZES, repeats=COUNTS, batch_size=st.integers(1, 9), micro=COUNTS, seed=st.integers(0, 99))
def test_every_picture_is_seen_exactly_as_often_as_asked(
    sizes: list[tuple[int, int]], repeats: int, batch_size: int, micro: int, seed: int
) -> None:
    steps = epoch_steps(
        sizes, repeats=repeats, batch_size=batch_size, micro_batch_size=min(micro, batch_size), seed=seed, epoch=1
    )

    seen = Counter(index for step in steps for batch in step for index in batch)

    assert seen == dict.fromkeys(range(len(sizes)), repeats)


@given(sizes=SIZES, batch_size=st.integers(1, 9), micro=COUNTS, epoch=st.integers(1, 50))
def test_a_micro_batch_has_one_size_and_a_step_is_never_larger_than_a_batch(
    sizes: list[tuple[int, int]], batch_size: int, micro: int, epoch: int
) -> None:
    micro = min(micro, batch_size)
    steps = epoch_steps(sizes, repeats=1, batch_size=batch_size, micro_batch_size=micro, seed=1, epoch=epoch)

    assert all(len({sizes[index] for index in batch}) == 1 for step in steps for batch in step)
    assert all(len(batch) <= micro for step in steps for batch in step)
    assert all(sum(map(len, step)) < batch_size + micro for step in steps)
    assert len(steps) == steps_per_epoch(sizes, repeats=1, batch_size=batch_size, micro_batch_size=micro)


def test_the_order_differs_between_epochs_and_is_the_same_for_the_same_epoch() -> None:
    def order(epoch: int, seed: int = 3) -> list[object]:
        return list(epoch_steps([1] * 20, repeats=1, batch_size=4, micro_batch_size=4, seed=seed, epoch=epoch))

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=4)
