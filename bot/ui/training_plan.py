"""What a training will do, in words, before it starts: for the card that asks whether to, and for the receipt."""

from __future__ import annotations

from dataclasses import dataclass

from bot.queue.planning.estimates import Estimate
from bot.queue.store.limits import hours_words
from bot.queue.store.measures import planned_steps
from bot.ui.discord_text import escape, shorten
from bot.ui.job_card import base_name, rank_words, rates_words
from trainer.protocol.bucket_shapes import ResolutionFit
from trainer.protocol.presets import presets, summary_of
from trainer.protocol.report import DatasetReport
from trainer.protocol.settings import TaskKind
from trainer.protocol.spec import Spec
from trainer.protocol.text import _, ngettext, rough_duration, size

#: Sample prompts that a plan quotes, and how much of each.
_SHOWN_PROMPTS, _PROMPT_CHARS = 4, 80


def plan_lines(
    spec: Spec, report: DatasetReport, fit: ResolutionFit | None = None, memory: int | None = None
) -> list[str]:
    """What is trained, from what, with which words, for how long, and in how much memory; one thought a line."""
    return [
        _("**Base model**: {name}", name=base_name(spec)),
        *([_("**Start**: from what an earlier training has learned.")] if spec.method.start_sha256 else []),
        _preset_line(spec),
        *_word_lines(spec),
        _prompts_line(spec),
        _length_line(spec, report),
        *([size_words(fit)] if fit else []),
        *([] if memory is None else [_("**Memory**: needs about {memory}.", memory=size(memory))]),
    ]


def _preset_line(spec: Spec) -> str:
    name = escape(spec.preset, 40)
    settings = " · ".join(
        part for part in (rank_words(spec), _("learning rate {rate}", rate=rates_words(spec))) if part
    )
    known = presets().get(spec.preset)
    if known is None:
        return _("**Preset**: {name} ({settings})", name=name, settings=settings)
    return _("**Preset**: {name} ({settings}). {summary}", name=name, settings=settings, summary=summary_of(known))


def _word_lines(spec: Spec) -> list[str]:
    """The trigger word, and the class prompt if there is one."""
    lines = []
    if trigger := spec.training.trigger:
        lines.append(
            _(
                "**Trigger word**: {trigger}. It is put in front of every caption that does not have it; use it in "
                "your prompts later.",
                trigger=escape(trigger, 60),
            )
        )
    elif spec.task is TaskKind.DIFFUSION:
        lines.append(_("**Trigger word**: none. The model learns from the captions alone."))
    if spec.prior.is_on:
        lines.append(
            ngettext(
                "**Class prompt**: “{prompt}”. The base model draws {n} image of it, so that it keeps the others.",
                "**Class prompt**: “{prompt}”. The base model draws {n} images of it, so that it keeps the others.",
                spec.prior.images,
                prompt=escape(spec.prior.class_prompt, 100),
            )
        )
    return lines


def _prompts_line(spec: Spec) -> str:
    if spec.task is not TaskKind.DIFFUSION:
        return _("**Samples**: images that it has not seen, with the class that it gives them.")
    prompts = spec.samples.prompts
    if not prompts:
        return _("**Samples**: from captions of your images.")
    quoted = " · ".join(
        f"“{escape(shorten(prompt, _PROMPT_CHARS), 2 * _PROMPT_CHARS)}”" for prompt in prompts[:_SHOWN_PROMPTS]
    )
    if len(prompts) > _SHOWN_PROMPTS:
        return _("**Samples**: {prompts} and {n} more", prompts=quoted, n=len(prompts) - _SHOWN_PROMPTS)
    return _("**Samples**: {prompts}", prompts=quoted)


def _length_line(spec: Spec, report: DatasetReport) -> str:
    steps = ngettext("about {n} step", "about {n} steps", planned_steps(spec, report.counts))
    epochs = ngettext("{n} epoch", "{n} epochs", spec.training.epochs)
    if not spec.early_stopping.enabled or spec.early_stopping.patience >= spec.training.epochs:
        return _("**Length**: {epochs}, {steps}", epochs=epochs, steps=steps)
    return ngettext(
        "**Length**: up to {epochs}, {steps}. It stops early if {n} epoch brings no progress.",
        "**Length**: up to {epochs}, {steps}. It stops early if {n} epochs bring no progress.",
        spec.early_stopping.patience,
        epochs=epochs,
        steps=steps,
    )


def size_words(fit: ResolutionFit) -> str:
    """`**Size**: 1024 px. 41 of 60 images are enlarged, up to 3.4 times. 4 % of an image is cropped on average.`."""
    if fit.enlarged:
        enlarged = ngettext(
            "{n} of {all} images is enlarged, {times} times.",
            "{n} of {all} images are enlarged, up to {times} times.",
            fit.enlarged,
            all=len(fit.images),
            times=f"{fit.most_enlarged:.1f}",
        )
    else:
        enlarged = _("No image is enlarged.")
    share = f"{100 * fit.mean_cropped:.0f}"
    cropped = _("{share} % of an image is cropped on average.", share=share)
    return _("**Size**: {px} px. {enlarged} {cropped}", px=fit.resolution, enlarged=enlarged, cropped=cropped)


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What the trainings of a study need together."""

    runs: int
    #: One after another; None: nothing like them has run here.
    seconds: float | None
    #: That each of them uses.
    gpus: int = 1
    #: GPU hours that the member has left this week; None: any number.
    left_h: float | None = None


def study_lines(plan: StudyPlan) -> list[str]:
    """How many trainings a study makes, how long they take one after another, and how many GPU hours that is."""
    lines = [ngettext("**Runs**: {n} training.", "**Runs**: {n} trainings, each as below.", plan.runs)]
    if plan.seconds is None:
        lines.append(_("**Time**: the first runs of this kind here, so no estimate yet."))
    else:
        about = rough_duration(plan.seconds)
        lines.append(_("**Time**: about {about} on one GPU, all runs together; less if some stop early.", about=about))
        hours = hours_words(plan.gpus * plan.seconds / 3600)
        if plan.left_h is None:
            lines.append(_("**GPU hours**: about {hours}.", hours=hours))
        else:
            left = hours_words(plan.left_h)
            lines.append(_("**GPU hours**: about {hours}; you have {left} left this week.", hours=hours, left=left))
    return lines


def estimate_line(estimate: Estimate | None) -> str:
    """How long it takes: a range of runs like it, or that there is no estimate yet."""
    if estimate is None:
        return _(
            "**Time**: the first run of this kind here, so no estimate yet. The card shows one after the first steps."
        )
    about = rough_duration(estimate.seconds)
    if estimate.high_s > estimate.low_s * 1.05:
        low, high = rough_duration(estimate.low_s), rough_duration(estimate.high_s)
        line = _("**Time**: about {about}; most runs like it took {low} to {high}.", about=about, low=low, high=high)
    else:
        line = _("**Time**: about {about}.", about=about)
    if estimate.usual_error is None:
        return line
    return line + " " + _("Such estimates are usually off by {error} %.", error=f"{100 * estimate.usual_error:.0f}")
