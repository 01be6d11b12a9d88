"""The results of a study for people: Markdown and HTML, with a verdict, a table and one chart of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from trainer.exchange.files import write_text
from trainer.report.templating import escape_markdown, light_variant, render_html

MARKDOWN_NAME, HTML_NAME = "results.md", "results.html"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table."""

    name: str
    is_number: bool = True


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One run, a cell for each column."""

    cells: tuple[str, ...]
    #: The winner, or the run that the study was for.
    is_first: bool = False
    #: Ended early or failed.
    is_faint: bool = False


@dataclass(frozen=True, kw_only=True)
class RunCurve:
    """The validation curve of one run."""

    name: str
    #: Validation loss over the base model's after each epoch, from epoch 1.
    ratios: tuple[float, ...]
    best_epoch: int
    #: The winner: in front and in gold.
    is_first: bool = False
    #: Ended by the study: its end is marked with a cross.
    is_ended: bool = False


@dataclass(frozen=True, kw_only=True)
class MeanCurve:
    """The mean of all curves, up to the shortest."""

    ratios: tuple[float, ...]
    #: Marked with a vertical line, which `label` names.
    epoch: int
    label: str


@dataclass(frozen=True, kw_only=True)
class StudySamples:
    """Samples of the runs beside each other."""

    #: PNG, relative to the study's folder; empty if there are no images to show.
    path: str
    alt: str
    #: How to read them, and which runs are not among them, one sentence each.
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StudyPage:
    """Everything that a results page shows."""

    kind: str
    title: str
    #: The findings, one sentence each, the most important first.
    verdict: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    #: How to read the table, one sentence each.
    notes: tuple[str, ...] = ()
    #: PNG, relative to the study's folder; drawn once there are curves.
    chart_path: str = ""
    chart_title: str = ""
    chart_alt: str = ""
    curves: tuple[RunCurve, ...] = ()
    mean: MeanCurve | None = None
    #: None before a run has finished, and for classifiers.
    samples: StudySamples | None = None
    #: A command that continues from here; empty if there is none.
    command: str = ""

    @property
    def chart(self) -> str | None:
        """Path of the chart; None while there is nothing to draw."""
        return self.chart_path if self.curves else None


def write_study_pages(page: StudyPage, folder: Path) -> list[Path]:
    """Write `results.md`, `results.html` and the chart into the study's folder; return the two pages."""
    if page.curves:
        # matplotlib takes half a second to load; a step without curves does not need it.
        from trainer.report.charts import DARK, LIGHT, draw_study_chart

        for path, theme in ((page.chart_path, DARK), (light_variant(page.chart_path), LIGHT)):
            draw_study_chart(folder / path, title=page.chart_title, curves=page.curves, mean=page.mean, theme=theme)
    html = render_html("study.html.j2", page=page)
    for name, text in ((MARKDOWN_NAME, study_markdown(page)), (HTML_NAME, html)):
        write_text(folder / name, text)
    return [folder / MARKDOWN_NAME, folder / HTML_NAME]


def study_markdown(page: StudyPage) -> str:
    """Return the page as Markdown."""
    lines = [f"# {escape_markdown(page.title)}", ""]
    for sentence in page.verdict:
        lines += [escape_markdown(sentence), ""]
    if page.chart:
        lines += [f"![{escape_markdown(page.chart_alt)}]({quote(page.chart)})", ""]
    if page.samples:
        if page.samples.path:
            lines += [f"![{escape_markdown(page.samples.alt)}]({quote(page.samples.path)})", ""]
        lines += [*(f"- {escape_markdown(note)}" for note in page.samples.notes), ""]
    lines += _markdown_table(page.columns, page.rows)
    lines += ["", *(f"- {escape_markdown(note)}" for note in page.notes)]
    if page.command:
        lines += ["", f"    {page.command}"]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(columns: Sequence[Column], rows: Sequence[TableRow]) -> list[str]:
    lines = [
        "| " + " | ".join(escape_markdown(column.name) for column in columns) + " |",
        "|" + "|".join("--:" if column.is_number else "---" for column in columns) + "|",
    ]
    for row in rows:
        cells = [escape_markdown(cell) for cell in row.cells]
        lines.append("| " + " | ".join(f"**{cell}**" if row.is_first and cell else cell for cell in cells) + " |")
    return lines
