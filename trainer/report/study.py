"""The results of a study for people: one chart of all runs, and a page with table and verdict, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trainer.report.pages import escape_markdown
from trainer.report.strangers import plain

MARKDOWN_NAME, HTML_NAME = "results.md", "results.html"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table."""

    name: str
    is_number: bool = True


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, a cell for each column."""

    cells: tuple[str, ...]
    #: The winner, or the run that the study was for.
    is_first: bool = False
    #: Ended early or failed.
    is_faint: bool = False


@dataclass(frozen=True, kw_only=True)
class StudyPage:
    """Everything that a results page shows."""

    kind: str
    title: str
    #: What was found out, a sentence each, the most important first.
    verdict: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    #: What to know about the table, a sentence each.
    notes: tuple[str, ...] = ()
    #: Relative to the study's folder; None where there is nothing to draw yet.
    chart: str | None = None
    chart_alt: str = ""
    #: A command that goes on from here; empty if there is none.
    command: str = ""


def write_study_pages(page: StudyPage, folder: Path) -> list[Path]:
    """Write `results.md` and `results.html` into the study's folder; returns the files."""
    texts = {MARKDOWN_NAME: study_markdown(page), HTML_NAME: _html(page)}
    for name, text in texts.items():
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
    return [folder / name for name in texts]


def study_markdown(page: StudyPage) -> str:
    """The page as Markdown."""
    lines = [f"# {escape_markdown(page.title)}", ""]
    for sentence in page.verdict:
        lines += [escape_markdown(sentence), ""]
    if page.chart:
        lines += [f"![{escape_markdown(page.chart_alt)}]({quote(page.chart)})", ""]
    lines += _markdown_table(page.columns, page.rows)
    lines += ["", *(f"- {escape_markdown(note)}" for note in page.notes)]
    if page.command:
        lines += ["", f"    {page.command}"]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    lines = [
        "| " + " | ".join(escape_markdown(column.name) for column in columns) + " |",
        "|" + "|".join("--:" if column.is_number else "---" for column in columns) + "|",
    ]
    for row in rows:
        cells = [escape_markdown(cell) for cell in row.cells]
        lines.append("| " + " | ".join(f"**{cell}**" if row.is_first and cell else cell for cell in cells) + " |")
    return lines


def _html(page: StudyPage) -> str:
    style = (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    return _environment().get_template("study.html.j2").render(page=page, style=Markup(style))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trainer.report"),
        autoescape=True,
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["href"] = quote
    return environment
