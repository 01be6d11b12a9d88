"""The sheets of a sampling job: its images as tables, with what each is of in words that a phone can show."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from trainer.protocol.bucket_shapes import Size
from trainer.protocol.events import SamplingSheet
from trainer.protocol.sampling import Cell, SamplingSpec
from trainer.protocol.text import _, listed, ngettext
from trainer.report.gallery import GridRow, GridSection, draw_grid, drawn

#: Images side by side: more would be too small on a phone.
_MOST_COLUMNS = 4
#: Images on a sheet: a higher one is cut off in a channel, and its letters are not read.
_MOST_IMAGES = 24


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A row of one prompt, and the cells in it."""

    prompt: int
    heading: str
    cells: tuple[Cell, ...]
    labels: tuple[str, ...]


@drawn
def draw_grid_sheets(job_dir: Path, spec: SamplingSpec, size: Size) -> tuple[SamplingSheet, ...]:
    """Draw the sheets of a whole grid into `samples/`: one, or one or more for each prompt if it is large."""
    sheets: list[SamplingSheet] = []
    for lines in _pages([_lines_of(spec, prompt) for prompt in range(len(spec.prompts))]):
        prompts = sorted({line.prompt for line in lines})
        sections = [
            GridSection(
                heading=spec.prompts[prompt].prompt,
                rows=[
                    GridRow(
                        heading=line.heading,
                        images=[job_dir / cell.path for cell in line.cells],
                        labels=line.labels,
                    )
                    for line in lines
                    if line.prompt == prompt
                ],
            )
            for prompt in prompts
        ]
        path = f"samples/sheet-{len(sheets) + 1}.png"
        draw_grid(job_dir / path, sections, size)
        sheets.append(SamplingSheet(path=path, alt=_alt(spec, lines), prompt=prompts[0] if len(prompts) == 1 else None))
    return tuple(sheets)


def _lines_of(spec: SamplingSpec, prompt: int) -> list[_Line]:
    """Arrange the cells of a prompt in rows.

    The columns are the strengths if there are several, else the models, else the seeds; the rows are the rest.
    """
    cells = [cell for cell in spec.cells if cell.prompt == prompt]
    names = _names(spec)
    trained = [model for model in spec.models if model.kind != "base"]
    down: tuple[str, ...]
    if len(spec.strengths) > 1:
        # The base stands beside a single model, in its row.
        across, down = "strength", ("model", "seed") if len(trained) > 1 else ("seed",)
    elif len(spec.models) > 1:
        across, down = "model", ("seed",)
    else:
        across, down = "seed", ()
    rows: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        rows.setdefault(tuple(names[cell.index][axis] for axis in down), []).append(cell)
    lines: list[_Line] = []
    for key, own in rows.items():
        several = [word for axis, word in zip(down, key, strict=True) if _is_varied(spec, axis)]
        rest = iter(own)
        while part := tuple(islice(rest, _MOST_COLUMNS)):
            # In a row of the base alone, its heading names it.
            labels = tuple(
                label if _is_varied(spec, across) and label not in key else ""
                for label in (names[cell.index][across] for cell in part)
            )
            lines.append(_Line(prompt=prompt, heading=_(" · ").join(filter(None, several)), cells=part, labels=labels))
    return lines


def _names(spec: SamplingSpec) -> Mapping[int, Mapping[str, str]]:
    """Name each cell's model, strength and seed."""
    return {
        cell.index: {
            "model": spec.models[cell.model].label,
            "strength": spec.models[cell.model].label
            if cell.strength is None
            else _("strength {strength}", strength=f"{cell.strength:g}"),
            "seed": _("seed {seed}", seed=cell.seed),
        }
        for cell in spec.cells
    }


def _is_varied(spec: SamplingSpec, axis: str) -> bool:
    return len({"model": spec.models, "strength": spec.strengths, "seed": spec.seeds}[axis]) > 1


def _pages(prompts: Sequence[Sequence[_Line]]) -> Iterator[list[_Line]]:
    """Put all prompts on one sheet if they fit, else each on its own, and a long one on several."""
    if sum(len(line.cells) for lines in prompts for line in lines) <= _MOST_IMAGES:
        yield [line for lines in prompts for line in lines]
        return
    for lines in prompts:
        page: list[_Line] = []
        for line in lines:
            if page and sum(len(each.cells) for each in page) + len(line.cells) > _MOST_IMAGES:
                yield page
                page = []
            page.append(line)
        yield page


def _alt(spec: SamplingSpec, lines: Sequence[_Line]) -> str:
    cells = [cell for line in lines for cell in line.cells]
    images = ngettext("{n} image", "{n} images", len(cells))
    models = listed(dict.fromkeys(spec.models[cell.model].label for cell in cells))
    seeds = listed(dict.fromkeys(str(cell.seed) for cell in cells))
    texts = (spec.prompts[index].prompt for index in dict.fromkeys(cell.prompt for cell in cells))
    # Discord takes 1024 characters.
    prompts = "; ".join(f"“{textwrap.shorten(text, 60, placeholder='…')}”" for text in texts)
    strengths = listed(dict.fromkeys(f"{cell.strength:g}" for cell in cells if cell.strength is not None))
    if not strengths:
        return _(
            "{images} of {models}. Seeds: {seeds}. Prompts: {prompts}",
            images=images,
            models=models,
            seeds=seeds,
            prompts=prompts,
        )
    return _(
        "{images} of {models}. Strengths: {strengths}. Seeds: {seeds}. Prompts: {prompts}",
        images=images,
        models=models,
        strengths=strengths,
        seeds=seeds,
        prompts=prompts,
    )
