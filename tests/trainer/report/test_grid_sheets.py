"""Sheets of a grid: what stands beside what, how a large one is divided, and what it says in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.golden import check_golden
from trainer.protocol.sampling import SamplingSpec, make_sampling_spec
from trainer.report import grid_sheets
from trainer.report.gallery import GridSection
from trainer.report.grid_sheets import draw_grid_sheets

GOLDEN = Path(__file__).parent / "golden"
BASE = {"kind": "base", "label": "base"}
GRIDS: dict[str, dict[str, Any]] = {
    "one image": {"models": 1},
    "a model and its base": {"models": 1, "base": True},
    "two seeds": {"models": 1, "seeds": 2},
    "a model at three strengths beside its base": {"models": 1, "base": True, "strengths": 3, "seeds": 2},
    "five epochs": {"models": 5, "base": True, "prompts": 2},
    "two epochs at two strengths": {"models": 2, "strengths": 2, "seeds": 2},
    "two epochs at two strengths, and the base": {"models": 2, "base": True, "strengths": 2},
    "four by four by three": {"models": 4, "prompts": 4, "strengths": 3},
    "a prompt with more than a sheet": {"models": 3, "seeds": 10, "strengths": 1},
}


def spec_of(*, models: int, base: bool = False, prompts: int = 1, strengths: int = 1, seeds: int = 1) -> SamplingSpec:
    jobs = [{"kind": "job", "label": f"epoch {n + 1}", "job_dir": "/jobs/7", "epoch": n + 1} for n in range(models)]
    return make_sampling_spec(
        {
            "models": [*([BASE] if base else []), *jobs],
            "prompts": [{"prompt": f"prompt {n + 1}"} for n in range(prompts)],
            "strengths": [(n + 1) / 2 for n in range(strengths)],
            "seeds": list(range(seeds)),
        }
    )


@pytest.fixture
def images_of(tmp_path: Path) -> Callable[[SamplingSpec], Path]:
    """Write an image for each cell; return the job folder."""

    def write(spec: SamplingSpec) -> Path:
        (tmp_path / "samples").mkdir(exist_ok=True)
        for cell in spec.cells:
            Image.new("RGB", (64, 64), "teal").save(tmp_path / cell.path)
        return tmp_path

    return write


def test_what_stands_beside_what(images_of: Callable[[SamplingSpec], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def describe(path: Path, sections: list[GridSection], size: tuple[int, int]) -> None:
        lines.append(f"  {path.name}")
        for section in sections:
            lines.append(f"    {section.heading}")
            for row in section.rows:
                cells = ", ".join(
                    f"{image.stem} {label}".rstrip() for image, label in zip(row.images, row.labels, strict=True)
                )
                lines.append(f"      {row.heading or '(no heading)'}: {cells}")

    monkeypatch.setattr(grid_sheets, "draw_grid", describe)
    for name, axes in GRIDS.items():
        spec = spec_of(**axes)
        lines.append(name)
        sheets = draw_grid_sheets(images_of(spec), spec, (64, 64))
        lines += [f"  alt: {sheet.alt}" for sheet in sheets]
    check_golden(GOLDEN / "grid_sheets.txt", "\n".join(lines))


@pytest.mark.parametrize("name", GRIDS)
def test_every_image_is_on_exactly_one_sheet(
    images_of: Callable[[SamplingSpec], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spec, shown = spec_of(**GRIDS[name]), list[str]()
    monkeypatch.setattr(
        grid_sheets,
        "draw_grid",
        lambda path, sections, size: shown.extend(
            image.name for section in sections for row in section.rows for image in row.images
        ),
    )
    draw_grid_sheets(images_of(spec), spec, (64, 64))
    assert sorted(shown) == [Path(cell.path).name for cell in spec.cells]


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)])
def test_a_sheet_is_drawn_for_a_phone(images_of: Callable[[SamplingSpec], Path], size: tuple[int, int]) -> None:
    spec = spec_of(models=4, prompts=1, strengths=3)
    (sheet,) = draw_grid_sheets(images_of(spec), spec, size)

    with Image.open(images_of(spec) / sheet.path) as image:
        image.load()
        # At 285 px, the width on a phone, a tile has 70 px or more.
        assert image.width <= 285 / 70 * 256 + 60
        # Not so high that a channel cuts it off.
        assert image.height <= 4 * image.width
        pixels = image.convert("RGB")
        teal = sum(
            pixels.getpixel((x, y)) == (0, 128, 128)
            for x in range(0, image.width, 8)
            for y in range(0, image.height, 8)
        )
    assert teal > 0.3 * (image.width // 8) * (image.height // 8)
