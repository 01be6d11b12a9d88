"""The samples of runs beside each other: the same prompts and seeds, the best run first, the base model last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, TypeAlias

from trainer.protocol.events import Finished
from trainer.protocol.setting_problems import with_short_names
from trainer.protocol.settings import TaskKind
from trainer.protocol.spec import Spec
from trainer.protocol.study import ChildState
from trainer.protocol.text import _, gain, listed
from trainer.report.study_page import StudySamples
from trainer.studies.child_specs import format_value
from trainer.studies.leaderboard import LeaderboardEntry
from trainer.studies.run_history import Child, RunHistory

if TYPE_CHECKING:
    from PIL import Image

STUDY_SAMPLES = "samples/runs.png"
#: Runs of a study on its sheet, beside the base: a phone shows more columns too small.
MAX_SHOWN = 3

#: Prompt and seed.
Key: TypeAlias = tuple[str, int]
Images: TypeAlias = "dict[Key, Image.Image]"


@dataclass(frozen=True, kw_only=True)
class SampledRun:
    """One column: a run, what it is called, and what stands above its images."""

    name: str
    heading: str
    note: str
    history: RunHistory

    @property
    def files(self) -> dict[Key, Path]:
        """The images of the best epoch; while the run goes on, those of the newest if the best has none."""
        best, sampled = self.history.best, self.history.sampled
        found = _existing(self.history.samples_at(best.epoch)) if best is not None else {}
        if found or sampled is None or sampled.epoch == 0 or isinstance(self.history.terminal_event, Finished):
            return found
        return _existing(self.history.samples_at(sampled.epoch))


@dataclass(frozen=True, kw_only=True)
class SamplesSheet:
    """What was found and drawn."""

    #: What each column shows, in words; fewer than two are not drawn.
    columns: tuple[str, ...]
    prompts: tuple[str, ...]
    #: Runs without images of the prompts and seeds of the first.
    missing: tuple[str, ...]
    #: Runs that have such images, shown or not.
    found: int

    @property
    def is_drawn(self) -> bool:
        return len(self.columns) > 1

    @property
    def alt(self) -> str:
        """The sheet in words; empty if there is none."""
        if not self.is_drawn:
            return ""
        prompts = "; ".join(f"“{shorten(prompt, 60, placeholder='…')}”" for prompt in dict.fromkeys(self.prompts))
        return _(
            "Images of the same prompts and seeds. From left to right: {names}. Prompts: {prompts}",
            names=listed(self.columns),
            prompts=prompts,
        )

    @property
    def missing_words(self) -> str:
        """A sentence about the runs that are left out; empty if none are."""
        if not (self.is_drawn and self.missing):
            return ""
        return _("There are no images of the same prompts and seeds from {names}.", names=listed(self.missing))


def draw_samples(path: Path, runs: Sequence[SampledRun], *, most: int, with_base: bool) -> SamplesSheet:
    """Draw the samples that the first `most` runs have in common, a column for each, and the base model's last.

    A run whose files are missing or damaged, or that drew other prompts than the first, is left out.
    """
    # Imported here: a step of a study without samples need not wait for Pillow.
    from trainer.report.gallery import MAX_COMPARED, ComparedColumn, draw_comparison, sample_captions

    shown, missing, found = _choose(runs, most)
    columns = [(run.heading, run.note, images) for run, images in shown]
    names = [_("{name} ({note})", name=run.name, note=run.note) if run.note else run.name for run, _images in shown]
    if shown and with_base:
        best, images = shown[0]
        base = _opened(_existing(best.history.samples_at(0)))
        if images.keys() & base.keys():
            columns.append((_("base model"), _("untrained"), base))
            names.append(_("base model"))
    common = [key for key in columns[0][2] if all(key in own for *_, own in columns)][:MAX_COMPARED] if columns else []
    if common and len(columns) > 1:
        captions = [_(" · ").join(filter(None, (each.text, each.note))) for each in sample_captions(common)]
        drawn = [
            ComparedColumn(heading=heading, note=note, images=[own[key] for key in common])
            for heading, note, own in columns
        ]
        draw_comparison(path, drawn, captions)
    return SamplesSheet(
        columns=tuple(names) if common else (),
        prompts=tuple(prompt or _("(no prompt)") for prompt, _seed in common),
        missing=tuple(missing),
        found=found,
    )


def _choose(runs: Sequence[SampledRun], most: int) -> tuple[list[tuple[SampledRun, Images]], list[str], int]:
    """Return the runs to show with their images, the names of those without any, and how many have some."""
    shown: list[tuple[SampledRun, Images]] = []
    missing: list[str] = []
    wanted: set[Key] = set()
    found = 0
    for run in runs:
        files = run.files
        # Opened only if they are shown: a study may have 64 runs.
        images = _opened(files) if len(shown) < most else {}
        keys = set(images) if len(shown) < most else set(files)
        if not keys or (wanted and not wanted & keys):
            missing.append(run.name)
            continue
        wanted, found = wanted or keys, found + 1
        if len(shown) < most:
            shown.append((run, images))
    return shown, missing, found


def _existing(files: Mapping[Key, Path]) -> dict[Key, Path]:
    return {key: path for key, path in files.items() if path.is_file()}


def _opened(files: Mapping[Key, Path]) -> Images:
    """Open the files that are whole."""
    from PIL import Image

    images: Images = {}
    for key, path in files.items():
        # Pillow raises each of these for a damaged file.
        with suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:
            images[key] = image.convert("RGB")
    return images


def gain_note(history: RunHistory) -> str:
    """How good a run is at its best epoch: `37 % better`; empty before the first."""
    return "" if history.best is None else gain(history.best.validation.ratio)


# -- studies ----------------------------------------------------------------------------------------------------------


def comparison_samples(study_dir: Path, spec: Spec, entries: Sequence[LeaderboardEntry]) -> StudySamples | None:
    """Draw the samples of the candidates that ran to their end, best first; None if none of them can have any."""
    finished = [entry for entry in entries if entry.child.state is ChildState.FINISHED]
    runs = [
        SampledRun(
            name=entry.candidate.label,
            heading=heading,
            note=_("best · {gain}", gain=gain_note(entry.child.history))
            if entry is entries[0]
            else gain_note(entry.child.history),
            history=entry.child.history,
        )
        for entry, heading in zip(finished, _headings(finished), strict=True)
    ]
    has_ended_early = any(entry.ended_after is not None for entry in entries)
    return _study_samples(study_dir, spec, runs, has_ended_early=has_ended_early)


def final_run_samples(study_dir: Path, spec: Spec, final: Child | None) -> StudySamples | None:
    """Draw the samples of the final run of a cross-validation; None before it has finished."""
    if final is None or final.state is not ChildState.FINISHED:
        return None
    name = _("final run")
    run = SampledRun(name=name, heading=name, note=_("all images"), history=final.history)
    return _study_samples(study_dir, spec, [run], has_ended_early=False)


def _study_samples(
    study_dir: Path, spec: Spec, runs: Sequence[SampledRun], *, has_ended_early: bool
) -> StudySamples | None:
    if spec.task is not TaskKind.DIFFUSION or all(run.history.sampled is None for run in runs):
        return None
    sheet = draw_samples(study_dir / STUDY_SAMPLES, runs, most=MAX_SHOWN, with_base=True)
    return StudySamples(
        path=STUDY_SAMPLES if sheet.is_drawn else "",
        alt=sheet.alt,
        notes=tuple(_notes(sheet, has_ended_early=has_ended_early)),
    )


def _notes(sheet: SamplesSheet, *, has_ended_early: bool) -> Iterator[str]:
    """How to read the sheet, and which runs are not on it."""
    if not sheet.is_drawn:
        yield _("There are no images to show beside each other: the files are missing.")
        return
    yield _("Each row has the same prompt and seed. Every training is shown at its best epoch.")
    if sheet.found > MAX_SHOWN:
        yield _("The best {n} of {total} are shown.", n=MAX_SHOWN, total=sheet.found)
    if sheet.missing:
        yield sheet.missing_words
    if has_ended_early:
        yield _("Trainings that ended early are not shown: they drew no images.")


def _headings(entries: Sequence[LeaderboardEntry]) -> Iterator[str]:
    """The values of each candidate that others do not have, by the names that users type: `lr 0.0003, rank 8`."""
    for entry in entries:
        values = entry.candidate.values
        differing = [name for name in values if any(other.candidate.values[name] != values[name] for other in entries)]
        yield ", ".join(f"{_short(name)} {format_value(values[name])}" for name in differing or values)


def _short(setting: str) -> str:
    return with_short_names(setting).rpartition(".")[2].replace("_", " ")
