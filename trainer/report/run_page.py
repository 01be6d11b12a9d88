"""The page of a training, `report.html` in its job folder, which opens from disk, runs no script and loads nothing.

The template is given the spec, the events by kind and the diagnostics; what is here prepares what a template cannot.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from statistics import median
from typing import Any

from markupsafe import Markup

from trainer.console import loss_verdict
from trainer.exchange.files import write_text
from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Exported,
    ExportFormat,
    Failed,
    Finished,
    Reader,
    Sampled,
    StageBegan,
    Started,
    StepDone,
    Stopped,
    StoppedEarly,
    TerminalEvent,
    Tested,
    Warned,
    all_of,
    last_of,
)
from trainer.protocol.exported_files import loading_code, newest_files
from trainer.protocol.settings import SplitKind, TaskKind
from trainer.protocol.spec import Spec
from trainer.protocol.text import _, by_level, ngettext, noise_levels, percent, share_off
from trainer.report.insights import Insight, NeverLearned, read_insight
from trainer.report.templating import light_variant, render_html, self_contained

#: The page, and the same with its images in it, to be sent alone.
PAGE_NAME, SHARED_PAGE_NAME = "report.html", "report-shared.html"
#: Drawn for the page, in its two themes: the loss, and the loss for layout, shapes and detail.
LOSS_CHART, LEVELS_CHART = "charts/loss.png", "charts/levels.png"

#: Frames of a filmstrip: more would hide the best epoch behind a scroll bar.
_MAX_FRAMES = 12
#: Warnings that explain something and need no decision; all others are about the result.
_EXPLAINING = frozenset({"idle_setting", "no_similarity_model", "mix_overlap", "diagnostics_failed", "memory_short"})


@dataclass(frozen=True, kw_only=True)
class ChangedSetting:
    """A setting that is not at its default."""

    name: str
    value: str
    default: str


@dataclass(frozen=True, kw_only=True)
class _LossPoint:
    """An epoch as a loss chart needs it."""

    epoch: int
    ratio: float
    interval: tuple[float, float] | None
    train_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class SampleStrip:
    """The samples of one prompt and seed in all epochs."""

    prompt: str
    #: Epoch (0: the base model) and path.
    frames: tuple[tuple[int, str], ...]


@dataclass(frozen=True, kw_only=True)
class RatioCurve:
    """The ratios of an image that was never learned, and the median ones, as points of an SVG of 120 by 36."""

    image: NeverLearned
    own: str
    usual: str
    #: Height of ratio 1, the base model's loss.
    base_y: float


def write_run_page(job_dir: Path, spec: Spec, events: Sequence[Event]) -> Path:
    """Write `report.html` of a job, also one that is running or failed, and return its path.

    Images are linked by their paths in the folder. The charts are drawn beside it.
    """
    if ended := all_of(events, EpochEnded):
        _draw_charts(job_dir, spec, events, ended)
    page = render_html("run.html.j2", **_page_values(job_dir, spec, events))
    write_text(job_dir / PAGE_NAME, page)
    write_text(job_dir / SHARED_PAGE_NAME, self_contained(page, job_dir))
    return job_dir / PAGE_NAME


def _draw_charts(job_dir: Path, spec: Spec, events: Sequence[Event], ended: Sequence[EpochEnded]) -> None:
    # matplotlib takes 0.4 s to load.
    from trainer.report.charts import DARK, LIGHT, draw_levels_chart, draw_loss_chart

    stages, stopped = all_of(events, StageBegan), last_of(events, StoppedEarly)
    for theme, name_of in ((DARK, str), (LIGHT, light_variant)):
        draw_loss_chart(
            job_dir / name_of(LOSS_CHART),
            [_loss_point(each) for each in ended],
            best_epoch=ended[-1].best_epoch,
            total_epochs=spec.training.epochs,
            stages=[(stage.first_epoch, stage.name) for stage in stages],
            stopped_at=stopped.epoch if stopped else None,
            theme=theme,
        )
        if by_level(ended[0].validation.bands):
            draw_levels_chart(job_dir / name_of(LEVELS_CHART), ended, total_epochs=spec.training.epochs, theme=theme)


def _loss_point(ended: EpochEnded) -> _LossPoint:
    loss = ended.validation
    return _LossPoint(
        epoch=ended.epoch,
        ratio=loss.ratio,
        interval=None if loss.ratio_low is None or loss.ratio_high is None else (loss.ratio_low, loss.ratio_high),
        train_ratio=ended.train_validation.ratio if ended.train_validation else None,
    )


def _page_values(job_dir: Path, spec: Spec, events: Sequence[Event]) -> dict[str, Any]:
    last = events[-1] if events else None
    data = _read_data(job_dir)
    dataset = _(", ").join(row["dataset"] for row in data) or spec.name
    ended, insight = all_of(events, EpochEnded), read_insight(job_dir)
    finished, steps = last_of(events, Finished), all_of(events, StepDone)
    return {
        "spec": spec,
        "is_classifier": spec.task is TaskKind.CLASSIFICATION,
        "verdict": headline(spec, events),
        "state": last.type if isinstance(last, TerminalEvent) else "running",
        "ended": ended,
        "best": best_of(ended) if ended else None,
        "base": last_of(events, BaseValidated),
        "tested": last_of(events, Tested),
        "finished": finished,
        "started": last_of(events, Started),
        "starts": len(all_of(events, Started)),
        "stages": all_of(events, StageBegan),
        # Of the files of epochs only the newest are kept.
        "exported": [file for file in newest_files(events) if file.epoch is None or (job_dir / file.path).is_file()],
        "sheets": [event for event in all_of(events, Sampled) if event.sheet and (job_dir / event.sheet).is_file()],
        "strips": _strips(all_of(events, Sampled), best_of(ended).epoch if ended else 0),
        #: The serious ones first.
        "warnings": sorted(
            {event.message: event.kind not in _EXPLAINING for event in all_of(events, Warned)}.items(),
            key=lambda warning: not warning[1],
        ),
        "metrics": tuple(dict.fromkeys(name for event in ended for name in event.metrics)),
        # What was lost between runs does not count.
        "seconds": finished.seconds if finished else sum(event.seconds for event in ended),
        "comparison": finished.comparison if finished else "output/comparison.png",
        "loss_chart": LOSS_CHART,
        "levels_chart": LEVELS_CHART,
        "steps_per_s": median(step.steps_per_s for step in steps) if steps else None,
        "peak_memory": max((step.peak_memory_bytes for step in steps), default=0),
        "insight": insight,
        "curves": tuple(_curve(image, insight) for image in insight.never_learned),
        "data": data,
        "dataset": dataset,
        "base_name": public_text(spec.base.source),
        "settings": tuple(changed_settings(spec)),
        # ASCII: it keeps its line breaks and has no characters that affect the text around them.
        "spec_json": Markup.escape(
            json.dumps({**_without_paths(spec.model_dump(mode="json")), "dataset": dataset}, indent=2)
        ),
        "exists": lambda path: bool(path) and (job_dir / path).is_file(),
        "share_off": share_off,
        "how_to_load": how_to_load,
    }


def best_of(ended: Sequence[EpochEnded]) -> EpochEnded:
    """Return the epoch whose weights are kept, of at least one."""
    return next((event for event in ended if event.epoch == ended[-1].best_epoch), ended[-1])


def headline(spec: Spec, events: Sequence[Event]) -> tuple[str, ...]:
    """Return the outcome in sentences, after one about how the job ended unless it finished."""
    ended = all_of(events, EpochEnded)
    outcome = tuple(_outcome(spec, events, ended)) if ended else (_("No epoch is complete yet."),)
    match events[-1] if events else None:
        case Finished():
            return outcome
        case Failed() as failed:
            return (_("It failed: {message} {hint}", message=failed.message, hint=failed.hint).strip(), *outcome)
        case Stopped(epoch=epoch, step=step, checkpoint=checkpoint):
            sentence = (
                _("It was stopped in epoch {epoch}, at step {step}; it continues from there when it runs again.")
                if checkpoint
                else _("It was stopped in epoch {epoch}, at step {step}; nothing was kept.")
            )
            return (sentence.format(epoch=epoch, step=step), *outcome)
        case _other:
            return (_("It is still running; these are its results so far."), *outcome)


def _outcome(spec: Spec, events: Sequence[Event], ended: Sequence[EpochEnded]) -> Iterator[str]:
    best, early, tested = best_of(ended), last_of(events, StoppedEarly), last_of(events, Tested)
    total, done = spec.training.epochs, ended[-1].epoch
    after = ngettext("After {n} epoch", "After {n} epochs", total)
    if done < total:
        after = _("After {done} of {total} epochs", done=done, total=total)
    is_trained_on_all = spec.split.kind is SplitKind.ALL
    yield _(
        "{after}, {best} is {verdict}{on_what}.",
        after=after,
        best=_("it") if best.epoch == done else _("the best, epoch {epoch},", epoch=best.epoch),
        verdict=loss_verdict(best.validation),
        on_what=_(", measured on its own training images") if is_trained_on_all else "",
    )
    if tested is not None:
        yield _("On the test images, never seen before: {verdict}.", verdict=loss_verdict(tested.test))
        if "accuracy" in tested.metrics:
            yield _("{share} of them were classified correctly.", share=percent(tested.metrics["accuracy"]))
    if levels := noise_levels([band.ratio for band in best.validation.bands]):
        yield _("By level: {levels}.", levels=levels)
    if early is not None:
        yield _("It stopped early: {reason}", reason=early.reason[:1].lower() + early.reason[1:])


def changed_settings(spec: Spec) -> Iterator[ChangedSetting]:
    """Return every setting that is not at its default, by its dotted name."""
    defaults = Spec(dataset=spec.dataset).model_dump(mode="json")
    for name, value, default in _differences(spec.model_dump(mode="json"), defaults, ""):
        yield ChangedSetting(name=name, value=format_setting(value), default=format_setting(default))


def setting_values(spec: Spec) -> Iterator[tuple[str, str]]:
    """Return every setting by its dotted name, as it would be typed."""
    for group, value in spec.model_dump(mode="json").items():
        if isinstance(value, dict):
            yield from ((f"{group}.{name}", format_setting(each)) for name, each in value.items())
        else:
            yield group, format_setting(value)


def _differences(values: Mapping[str, Any], defaults: Mapping[str, Any], group: str) -> Iterator[tuple[str, Any, Any]]:
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict) and default:
            yield from _differences(value, default, f"{group}{name}.")
        elif value != default:
            yield f"{group}{name}", value, default


def format_setting(value: Any) -> str:
    """Format a value as it would be written after `--set`; a dash for none."""
    if value is None or value in ("", [], {}):
        return "–"
    if isinstance(value, float):
        return f"{value:g}"
    value = _without_paths(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def public_text(text: str) -> str:
    """Return a path of this machine as its last part only: a page is passed on to others."""
    is_path = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return PureWindowsPath(text).name if is_path else text


def _without_paths(value: Any) -> Any:
    match value:
        case str():
            return public_text(value)
        case dict():
            return {key: _without_paths(each) for key, each in value.items()}
        case list():
            return [_without_paths(each) for each in value]
    return value


def _strips(sampled: Sequence[Sampled], best_epoch: int) -> tuple[SampleStrip, ...]:
    """Group the samples by their index, which is one prompt and seed in every epoch; choose some of many epochs."""
    shown = _some([event.epoch for event in sampled], best_epoch)
    sampled = [event for event in sampled if event.epoch in shown]
    strips = []
    for index in range(max((len(event.samples) for event in sampled), default=0)):
        with_it = [event for event in sampled if index < len(event.samples)]
        frames = tuple((event.epoch, event.samples[index].path) for event in with_it)
        strips.append(SampleStrip(prompt=with_it[-1].samples[index].prompt, frames=frames))
    return tuple(strips)


def _some(epochs: Sequence[int], best_epoch: int) -> set[int]:
    """Choose at most `_MAX_FRAMES` epochs: the first, the best and the last, and others evenly."""
    if len(epochs) <= _MAX_FRAMES:
        return set(epochs)
    room = _MAX_FRAMES - 1
    return {epochs[index * (len(epochs) - 1) // (room - 1)] for index in range(room)} | {best_epoch}


def _curve(image: NeverLearned, insight: Insight) -> RatioCurve:
    lines = [{0: 1.0, **image.ratios}, {0: 1.0, **insight.usual_ratios}]
    ratios = [ratio for line in lines for ratio in line.values()]
    low, high = min(ratios), max(ratios)
    last = max((epoch for line in lines for epoch in line), default=1) or 1

    def height(ratio: float) -> float:
        return round(34 - 32 * (ratio - low) / max(high - low, 1e-6), 1)

    own, usual = (
        " ".join(f"{round(120 * epoch / last, 1)},{height(line[epoch])}" for epoch in sorted(line)) for line in lines
    )
    return RatioCurve(image=image, own=own, usual=usual, base_y=height(1.0))


def _read_data(job_dir: Path) -> tuple[Mapping[str, Any], ...]:
    path = job_dir / "data.json"
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ()


def how_to_load(file: Exported) -> tuple[str, ...]:
    """Return how to load an exported file, relative to the job folder: lines of Python, and where programs look."""
    name = PurePosixPath(file.path).stem
    lines = list(loading_code(file, file.path))
    is_for_webui = Reader.A1111 in file.readers or Reader.FORGE in file.readers
    match file.format:
        case ExportFormat.KOHYA | ExportFormat.DIFFERENCE:
            if is_for_webui:
                lines.append(_("A1111, Forge: into models/Lora, then <lora:{name}:1> in the prompt", name=name))
            if Reader.COMFYUI in file.readers:
                lines.append(_("ComfyUI: into models/loras, then the node Load LoRA"))
            if Reader.SD_CPP in file.readers:
                lines.append(
                    _(
                        "stable-diffusion.cpp: into the folder of --lora-model-dir, then <lora:{name}:1> in the prompt",
                        name=name,
                    )
                )
        case ExportFormat.EMBEDDING:
            lines.append(_("A1111, Forge: into embeddings, then {name} in the prompt", name=name))
            lines.append(_("ComfyUI: into models/embeddings, then embedding:{name} in the prompt", name=name))
        case ExportFormat.CHECKPOINT if file.readers:
            lines.append(_("into the folder of checkpoints, then choose it there"))
        case _:
            pass
    return tuple(lines)
