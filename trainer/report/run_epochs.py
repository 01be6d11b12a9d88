"""The table of epochs on the page of a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.protocol.events import BaseValidated, EpochEnded, Event
from trainer.protocol.spec import Spec
from trainer.report.run_words import band_words, duration
from trainer.report.said import all_of, last_of


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One line of the table of epochs; the base's has no training."""

    epoch: int
    is_best: bool
    cells: tuple[str, ...]


def epoch_columns(ended: Sequence[EpochEnded], spec: Spec) -> tuple[str, ...]:
    """What the columns are called, without the epoch's; only those that something stands in."""
    several = ("stage",) if len(spec.plan) > 1 else ()
    probes = ("training pictures", "gap") if any(each.gap is not None for each in ended) else ()
    metrics = tuple(name.replace("_", " ") for name in _metrics(ended))
    return (*several, "training loss", "validation loss", "of the base's", "95 %", *probes, *metrics, "rate", "time")


def epoch_rows(events: Sequence[Event], spec: Spec) -> Iterator[EpochRow]:
    """The base model's line, and one for each epoch."""
    ended, base = all_of(events, EpochEnded), last_of(events, BaseValidated)
    columns = len(epoch_columns(ended, spec))
    stage = ("",) if len(spec.plan) > 1 else ()
    if base:
        cells = (*stage, "", f"{base.validation.loss:.4f}", "1.000", "")
        yield EpochRow(epoch=0, is_best=False, cells=cells + ("",) * (columns - len(cells)))
    metrics = _metrics(ended)
    has_probes = any(each.gap is not None for each in ended)
    for each in ended:
        train = each.train_validation
        probes = (f"{train.ratio:.3f}" if train else "", "" if each.gap is None else f"{each.gap:+.1%}")
        yield EpochRow(
            epoch=each.epoch,
            is_best=each.epoch == ended[-1].best_epoch,
            cells=(
                *((str(each.stage),) if stage else ()),
                f"{each.train_loss:.4f}",
                f"{each.validation.loss:.4f}",
                f"{each.validation.ratio:.3f}",
                band_words(each.validation),
                *(probes if has_probes else ()),
                *(f"{each.metrics[name]:.3f}" if name in each.metrics else "" for name in metrics),
                f"{each.learning_rate:.2g}",
                duration(each.seconds),
            ),
        )


def _metrics(ended: Sequence[EpochEnded]) -> list[str]:
    return list(dict.fromkeys(name for each in ended for name in each.metrics))
