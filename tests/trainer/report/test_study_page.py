"""The results page: table, verdict and chart; hostile text stays text in both forms."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt
from PIL import Image

from tests.trainer.report.html_page import Page
from trainer.protocol.text import speaking
from trainer.report.charts import draw_study_chart
from trainer.report.study_page import (
    Column,
    MeanCurve,
    RunCurve,
    StudyPage,
    TableRow,
    study_markdown,
    write_study_pages,
)

CURVES = (
    RunCurve(name="a", ratios=(0.9, 0.8, 0.85), best_epoch=2, is_first=True),
    RunCurve(name="b", ratios=(0.95, 50.0), best_epoch=1, is_ended=True),
    RunCurve(name="c", ratios=(), best_epoch=1),
)
EVIL = "<script>alert(1)</script> [x](https://e.vil) | **bold**\nnext"


def tags_of(html: str) -> list[tuple[str, dict[str, str]]]:
    parser = Page()
    parser.feed(html)
    return parser.tags


def page(**given: object) -> StudyPage:
    values: dict[str, object] = {
        "kind": "Comparison of 2 candidates",
        "title": "lora: rank",
        "verdict": ("rank 8 wins.",),
        "columns": (Column(name="candidate", is_number=False), Column(name="best loss")),
        "rows": (TableRow(cells=("c01", "61.0 %"), is_first=True), TableRow(cells=("c02", "70.0 %"), is_faint=True)),
    }
    return StudyPage(**(values | given))  # type: ignore[arg-type]


def test_both_pages_hold_verdict_table_notes_chart_and_command(tmp_path: Path) -> None:
    whole = page(
        notes=("A note.",),
        chart_path="charts/a b.png",
        chart_title="t",
        chart_alt="all curves",
        curves=(RunCurve(name="a", ratios=(0.9,), best_epoch=1),),
        command="python -m trainer run x/winner",
    )
    markdown, html = (file.read_text(encoding="utf-8") for file in write_study_pages(whole, tmp_path))
    for text in ("rank 8 wins.", "61.0 %", "A note.", "charts/a%20b.png", "python -m trainer run x/winner"):
        assert text in markdown
        assert text in html
    assert sorted(file.name for file in tmp_path.iterdir()) == ["charts", "results.html", "results.md"]
    assert (tmp_path / "charts" / "a b.png").stat().st_size > 10_000
    # Readers of light pages get the chart in light colors.
    tags = tags_of(html)
    (light,) = [attributes for tag, attributes in tags if tag == "source"]
    assert light == {"media": "(prefers-color-scheme: light)", "srcset": "charts/a%20b-light.png"}
    assert (tmp_path / "charts" / "a b-light.png").is_file()
    with speaking("zh_CN"):
        chinese = write_study_pages(whole, tmp_path)[1].read_text(encoding="utf-8")
    assert [dict(tags)["html"], dict(tags_of(chinese))["html"]] == [{"lang": "en"}, {"lang": "zh-CN"}]


def test_the_markdown_table_is_a_table_with_the_winner_in_bold() -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(study_markdown(page()))
    assert sum(token.type == "tr_open" for token in tokens) == 3
    assert "| **c01** | **61.0 %** |" in study_markdown(page())


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    wild = page(
        title=EVIL,
        verdict=(EVIL,),
        notes=(EVIL,),
        rows=(TableRow(cells=(EVIL, EVIL)),),
        chart_alt=EVIL,
        chart_path="x.png",
        curves=CURVES[:1],
    )
    markdown, html = (file.read_text(encoding="utf-8") for file in write_study_pages(wild, tmp_path))
    assert "<script" not in html
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown)
    inline = [child.type for token in tokens for child in token.children or ()]
    assert not {"link_open", "html_inline", "strong_open"} & set(inline)
    assert not any(token.type == "html_block" for token in tokens)
    assert sum(token.type == "tr_open" for token in tokens) == 2


def test_the_chart_shows_every_curve_the_mean_and_a_run_that_diverged(tmp_path: Path) -> None:
    mean = MeanCurve(ratios=(0.92,), epoch=2, label="final run: 2 epochs")
    alone = draw_study_chart(tmp_path / "a.png", title="t", curves=CURVES[:1])
    together = draw_study_chart(tmp_path / "b.png", title="t", curves=CURVES, mean=mean)
    with Image.open(alone) as first, Image.open(together) as second:
        gold = (240, 178, 50)
        assert first.width == second.width == 900
        for image in (first.convert("RGB"), second.convert("RGB")):
            # The run that diverged does not flatten the others: the winner's curve spans a good part of the height.
            rows = [y for y in range(550) if any(image.getpixel((x, y)) == gold for x in range(100, 900, 3))]
            assert max(rows) - min(rows) > 120
    assert not list(tmp_path.glob("*.part"))
