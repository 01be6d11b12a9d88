"""The model card: `README.md` beside the result, with the front matter by which the Hugging Face hub shows a model.

It holds what a stranger needs to use the model and to judge it: samples, trigger word, settings, and numbers about the
images, but none of the images.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.exchange.dataset_dir import read_report
from trainer.exchange.files import write_text
from trainer.protocol.events import Event, Exported, Finished, Sampled, Tested, all_of, last_of
from trainer.protocol.exported_files import loading_code, newest_files
from trainer.protocol.report import DatasetReport
from trainer.protocol.settings import MethodKind, TaskKind
from trainer.protocol.spec import Spec
from trainer.protocol.text import _, ngettext, size, verdict
from trainer.report.run_page import changed_settings, public_text
from trainer.report.templating import code, escape_markdown

CARD_NAME = "README.md"
#: Samples that the card shows, copied beside it.
IMAGES_FOLDER = "images"
_MAX_IMAGES = 4
#: `owner/name`, as the hub accepts it.
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
#: Licenses of the released bases, as their cards on the hub name them, by a part of their names.
_STABILITY = {
    "license": "other",
    "license_name": "stabilityai-ai-community",
    "license_link": "https://stability.ai/license",
}
_LICENSES: Mapping[str, Mapping[str, str]] = {
    "stable-diffusion-v1-4": {"license": "creativeml-openrail-m"},
    "stable-diffusion-v1-5": {"license": "creativeml-openrail-m"},
    "stable-diffusion-2": {"license": "openrail++"},
    "stable-diffusion-xl-base": {"license": "openrail++"},
    "stable-diffusion-3": _STABILITY,
}
_RELEASED_BY = ("stabilityai/", "runwayml/", "CompVis/", "stable-diffusion-v1-5/", "sd2-community/")


def write_model_card(job_dir: Path, spec: Spec, events: Sequence[Event]) -> Path:
    """Write the card of a finished job into `output/`, with the samples of its best epoch; return its path."""
    output = job_dir / "output"
    finished = last_of(events, Finished)
    images = _copy_samples(job_dir, output / IMAGES_FOLDER, finished, events)
    try:
        report = read_report(Path(spec.dataset))
    except (OSError, ValueError):
        # The dataset was deleted since: the card does without its numbers.
        report = None
    front = front_matter(spec, images)
    lines = list(_body(spec, events, finished, images, report))
    write_text(output / CARD_NAME, f"---\n{front}---\n\n" + "\n".join(lines).rstrip() + "\n")
    return output / CARD_NAME


def _copy_samples(
    job_dir: Path, folder: Path, finished: Finished | None, events: Sequence[Event]
) -> list[tuple[str, str, int]]:
    """Put the best epoch's samples beside the card; return path from the card, prompt and seed of each."""
    drawn = all_of(events, Sampled)
    of_best = [event for event in drawn if finished is not None and event.epoch == finished.best_epoch]
    found: list[tuple[str, str, int]] = []
    shutil.rmtree(folder, ignore_errors=True)
    for sample in [each for event in of_best[-1:] for each in event.samples][:_MAX_IMAGES]:
        source = job_dir / sample.path
        if not source.is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(found)}{PurePosixPath(sample.path).suffix}"
        try:
            os.link(source, folder / name)
        except OSError:
            shutil.copyfile(source, folder / name)
        found.append((f"{IMAGES_FOLDER}/{name}", sample.prompt, sample.seed))
    return found


# -- front matter -------------------------------------------------------------------------------------------------


def front_matter(spec: Spec, images: Sequence[tuple[str, str, int]]) -> str:
    """Return the YAML that the hub reads: what the model is, what it was made from, and under which license."""
    # Imported here: it takes a quarter of a second.
    from huggingface_hub import ModelCardData

    is_diffusion = spec.task is TaskKind.DIFFUSION
    base = hub_base(spec)
    method = spec.method.kind
    tags = ["darkroom", *(["text-to-image", "stable-diffusion", method.value] if is_diffusion else [])]
    if method.is_adapter and method is not MethodKind.LORA:
        tags.append("lora")
    values: dict[str, Any] = {
        "base_model": base,
        "library_name": "diffusers" if is_diffusion else "transformers",
        "pipeline_tag": "text-to-image" if is_diffusion else "image-classification",
        "tags": tags,
        **license_of(base),
    }
    if spec.training.trigger:
        values["instance_prompt"] = spec.training.trigger
    if is_diffusion and images:
        values["widget"] = [{"text": prompt or " ", "output": {"url": path}} for path, prompt, _seed in images]
    return f"{ModelCardData(**values).to_yaml()}\n"


def hub_base(spec: Spec) -> str | None:
    """Return the base's name on the hub; None: it was a file of its own."""
    source = spec.base.source
    return source if _HUB_ID.fullmatch(source) and not Path(source).exists() else None


def license_of(base: str | None) -> Mapping[str, str]:
    """Return the license that a model inherits from a released base; of any other base it is not known."""
    if base is not None and base.startswith(_RELEASED_BY):
        for part, found in _LICENSES.items():
            if part in base:
                return found
    return {"license": "unknown"}


# -- the page -------------------------------------------------------------------------------------------------------


def _body(
    spec: Spec,
    events: Sequence[Event],
    finished: Finished | None,
    images: Sequence[tuple[str, str, int]],
    report: DatasetReport | None,
) -> Iterator[str]:
    base = public_text(spec.base.source)
    yield from (f"# {escape_markdown(spec.name)}", "", escape_markdown(_what_it_is(spec, base)), "")
    if images:
        yield from _samples(images)
    files = [file for file in newest_files(events) if file.epoch is None]
    if files:
        yield from _use(spec, files)
    if finished is not None:
        yield from _result(spec, events, finished)
    if report is not None:
        yield from _data(report)
    yield from (f"## {_('Settings')}", "", f"| {_('Setting')} | {_('Value')} |", "|---|---|")
    for each in changed_settings(spec):
        if each.name not in {"dataset", "name", "mix"}:
            yield f"| {code(each.name)} | {escape_markdown(each.value)} |"
    yield from ("", f"## {_('Base model and license')}", "", escape_markdown(_license_words(spec, base)))


def _what_it_is(spec: Spec, base: str) -> str:
    if spec.task is not TaskKind.DIFFUSION:
        return _("An image classifier, fine-tuned from {base} with Darkroom.", base=base)
    if spec.method.kind.is_adapter:
        return _("A {method} for {base}, trained with Darkroom.", method=spec.method.kind.adapter_name, base=base)
    if spec.method.kind is MethodKind.TEXTUAL_INVERSION:
        return _("A new word for {base} (textual inversion), trained with Darkroom.", base=base)
    return _("A full fine-tune of {base}, trained with Darkroom.", base=base)


def _samples(images: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    yield from (f"## {_('Samples')}", "")
    for path, prompt, seed in images:
        yield f"![{escape_markdown(prompt)}]({path})"
        yield ""
        yield f"> {escape_markdown(prompt)} · {_('seed {seed}', seed=seed)}"
        yield ""


def _use(spec: Spec, files: Sequence[Exported]) -> Iterator[str]:
    yield from (f"## {_('How to use it')}", "")
    if trigger := spec.training.trigger:
        yield from (_("Put {word} into the prompt.", word=code(trigger)), "")
    yield from (f"| {_('File')} | {_('Size')} | SHA-256 |", "|---|--:|---|")
    for file in files:
        yield f"| {code(_beside(file))} | {size(file.bytes)} | {code(file.sha256[:16])}… |"
    yield ""
    lines = next((lines for file in files if (lines := loading_code(file, _beside(file)))), ())
    if lines:
        yield from ("```python", *lines, "```", "")


def _beside(file: Exported) -> str:
    """The path of a file of `output/` from the card."""
    return str(PurePosixPath(file.path).relative_to("output"))


def _result(spec: Spec, events: Sequence[Event], finished: Finished) -> Iterator[str]:
    yield from (f"## {_('Result')}", "")
    sentence = _(
        "The best of {epochs} epochs is epoch {best}. On images that it was not trained on, it is {verdict}.",
        epochs=finished.epochs,
        best=finished.best_epoch,
        verdict=verdict(finished.best_ratio),
    )
    if spec.task is not TaskKind.DIFFUSION:
        sentence = _("The best of {epochs} epochs is epoch {best}.", epochs=finished.epochs, best=finished.best_epoch)
    yield from (escape_markdown(sentence), "")
    tested = last_of(events, Tested)
    if tested is not None:
        words = _(
            "On test images, which were used for nothing else, it is {verdict}.",
            verdict=verdict(tested.test.ratio, tested.test.ratio_low, tested.test.ratio_high),
        )
        yield from (escape_markdown(words), "")


def _data(report: DatasetReport) -> Iterator[str]:
    counts = report.counts
    yield from (f"## {_('Training data')}", "")
    words = ngettext(
        "{n} image: {train} to train on, {validation} to validate, {test} to test.",
        "{n} images: {train} to train on, {validation} to validate, {test} to test.",
        counts.kept,
        train=counts.train,
        validation=counts.validation,
        test=counts.test,
    )
    captioned = ngettext("{n} of them has a caption.", "{n} of them have captions.", counts.captioned)
    yield from (f"{words} {captioned} {_('The images are not part of this model.')}", "")


def _license_words(spec: Spec, base: str) -> str:
    found = license_of(hub_base(spec))
    if found["license"] == "unknown":
        return _(
            "It was made from {base}, whose license applies to it too. That license is not known to Darkroom: ask the "
            "maker of the base model before you pass this model on.",
            base=base,
        )
    name = found.get("license_name", found["license"])
    return _("It was made from {base}, whose license applies to it too: {license}.", base=base, license=name)
