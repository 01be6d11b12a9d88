"""Long work is never silent: between its pieces each phase says that it goes on, or the bot would end it as hung."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

import pytest

from tests.trainer.conftest import SMALL, draw_pictures
from trainer.dataset.preparing.prepare import prepare
from trainer.protocol.events import EXIT_FINISHED, EpochEnded, Event, Exported, Phase, PhaseBegan, Working, parse_event
from trainer.protocol.presets import spec_from_preset
from trainer.training.run import run

pytestmark = pytest.mark.timeout(600)

CHANGES = {
    **SMALL,
    "training": {"epochs": 1, "batch_size": 2, "micro_batch_size": 1},
    "method": {"rank": 4},
    "prior": {"class_prompt": "an egg", "images": 4, "steps": 3},
    "samples": {"steps": 3, "prompts": ["a red egg"], "unrelated_prompts": ["a house"]},
}


def spoke_in(said: Iterable[Event]) -> Counter[Phase]:
    """How often it was said in each phase that the work goes on."""
    counts: Counter[Phase] = Counter()
    phase = Phase.LOADING
    for event in said:
        if isinstance(event, PhaseBegan):
            phase = event.phase
        elif isinstance(event, Working):
            counts[phase] += 1
    return counts


def test_a_training_speaks_between_all_pieces_of_long_work(
    tmp_path: Path, random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if each piece took a minute.
    monkeypatch.setattr("trainer.reporter.SPEAK_EVERY_S", 0.0)
    # A dataset of its own: nothing is in its cache.
    prepare([draw_pictures(tmp_path / "pictures")], tmp_path / "prepared", resolution=64)
    job_dir = tmp_path / "job"
    spec_from_preset("lora", dataset=str(tmp_path / "prepared"), base=str(random_base), changes=CHANGES).write(job_dir)
    assert run(job_dir) == EXIT_FINISHED

    said = [parse_event(line) for line in (job_dir / "events.jsonl").read_bytes().splitlines()]
    spoke = spoke_in(said)
    # Class pictures, four at once: before them, and at each step; latents of the 12 and the 4; captions.
    assert spoke[Phase.CACHING] == 1 + 3 + 12 + 4 + 1
    # While a model is loaded nothing can be said; the bot waits longer.
    assert {*spoke} == {*Phase} - {Phase.LOADING}
    # Samples of the base and of the epoch, in three steps each; insights at the end speak in that phase too.
    first_epoch = takewhile(lambda event: not isinstance(event, EpochEnded), said)
    assert spoke_in(first_epoch)[Phase.SAMPLING] >= 3 + 3
    # One for each micro-batch at least, and before each file that is loaded back.
    assert spoke[Phase.TRAINING] >= 16
    assert spoke[Phase.EXPORTING] == sum(isinstance(event, Exported) for event in said)
