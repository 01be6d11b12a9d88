"""The page of a training, `report.html` in its job folder: the whole story, for people, which opens from disk, runs no
script and asks nothing of a net."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from trainer.protocol.events import EpochEnded, Event
from trainer.protocol.spec import Spec
from trainer.report.insights import read_insight
from trainer.report.pages import html_template
from trainer.report.run_contents import BANDS_CHART, contents_of_run
from trainer.report.said import all_of

PAGE_NAME = "report.html"


def write_run_page(job_dir: Path, spec: Spec, events: Sequence[Event]) -> Path:
    """Write `report.html` by rename, and return its path; a job that goes on, or that failed, has one too.

    Pictures are linked by their paths in the folder. The chart of the bands of timesteps is drawn beside it.
    """
    _draw_bands(job_dir, spec, events)
    style = (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    contents = contents_of_run(job_dir, spec, events, read_insight(job_dir))
    html = html_template("run.html.j2").render(
        contents=contents, style=Markup(style), spec_json=Markup.escape(contents.spec_json)
    )
    part = job_dir / f"{PAGE_NAME}.part"
    part.write_text(html, encoding="utf-8")
    part.replace(job_dir / PAGE_NAME)
    return job_dir / PAGE_NAME


def _draw_bands(job_dir: Path, spec: Spec, events: Sequence[Event]) -> None:
    ended = all_of(events, EpochEnded)
    if not ended or len(ended[0].validation.bands) < 2:
        return
    # matplotlib: 0.4 s to load.
    from trainer.report.charts import draw_bands_chart

    draw_bands_chart(
        job_dir / BANDS_CHART,
        title="Where it learnt",
        bands=[(band.first_timestep, band.last_timestep) for band in ended[0].validation.bands],
        epochs=[each.epoch for each in ended],
        ratios=[[band.ratio for band in each.validation.bands] for each in ended],
        best_epoch=ended[-1].best_epoch,
        total_epochs=spec.training.epochs,
    )
