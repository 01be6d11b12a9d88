"""What became of a training, as sentences, and its numbers as people write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from trainer.protocol.events import (
    EpochEnded,
    Event,
    Failed,
    Finished,
    Stopped,
    StoppedEarly,
    Tested,
    ValidationLoss,
)
from trainer.protocol.settings import SplitKind
from trainer.protocol.spec import Spec
from trainer.report.said import all_of, best_of, last_of


def headline(spec: Spec, events: Sequence[Event]) -> tuple[str, ...]:
    """The outcome in one plain sentence, and where a job ended otherwise, first how."""
    said = []
    match events[-1] if events else None:
        case Failed() as failed:
            said.append(f"It failed: {failed.message} {failed.hint}".strip())
        case Stopped(epoch=epoch, step=step, checkpoint=checkpoint):
            kept = "it goes on from there when it is run again" if checkpoint else "nothing was kept"
            said.append(f"It was stopped in epoch {epoch}, at step {step}; {kept}.")
        case Finished():
            pass
        case _:
            said.append("It is not over: this is how far it has come.")
    ended = all_of(events, EpochEnded)
    said.append(_outcome(spec, events, ended) if ended else "No epoch is over yet.")
    return tuple(said)


def _outcome(spec: Spec, events: Sequence[Event], ended: Sequence[EpochEnded]) -> str:
    best, early = best_of(ended), last_of(events, StoppedEarly)
    why = early.reason if early else ""
    stopped = f" (stopped early: {why[0].lower()}{why[1:].rstrip('.')})" if why else ""
    total, done = spec.training.epochs, ended[-1].epoch
    after = f"After {done} of {total} epochs{stopped}" if done < total else f"After {_epochs(total)}"
    loss = "the loss on training pictures" if spec.split.kind is SplitKind.ALL else "the validation loss"
    of_best = "" if best.epoch == done else f" of the best, epoch {best.epoch},"
    said = f"{after} {loss}{of_best} is {best.validation.ratio:.2f} of the base's{ratio_words(best.validation, False)}"
    tested = last_of(events, Tested)
    if tested is not None:
        said += f"; on the test pictures {tested.test.ratio:.2f}{ratio_words(tested.test, False)}"
        if "accuracy" in tested.metrics:
            said += f", with {tested.metrics['accuracy']:.0%} of them told right"
    return said + "."


def ratio_words(loss: ValidationLoss, with_ratio: bool = True) -> str:
    """`0.61 (95%: 0.58–0.64)`; without the ratio a space stands before the bracket, and nothing where it is open."""
    interval = f" (95%: {loss.ratio_low:.2f}–{loss.ratio_high:.2f})" if loss.ratio_low is not None else ""
    return f"{loss.ratio:.2f}{interval}" if with_ratio else interval


def band_words(loss: ValidationLoss) -> str:
    """The interval of a ratio, empty where there is none."""
    return "" if loss.ratio_low is None else f"{loss.ratio_low:.3f}–{loss.ratio_high:.3f}"


def duration(seconds: float) -> str:
    """`41 s`, `3 min 46 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def bytes_in_words(count: int) -> str:
    """`4.0 MiB`, `1.3 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def setting_words(value: Any) -> str:
    """A value of a setting as it would be written after `--set`; a dash for none."""
    if value is None or value in ("", [], {}):
        return "–"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"
