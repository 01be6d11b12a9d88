"""Sampling specs: the cells of a grid, what is refused, and sizes of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden import check_sentences
from tests.trainer.protocol.golden_files import holds
from trainer.exchange.job_dir import read_sampling, write_spec
from trainer.protocol.sampling import MAX_IMAGES, Cell, check_size, make_sampling_spec, sampling_sizes
from trainer.protocol.spec import SpecError

GOLDEN = Path(__file__).parent / "golden"
BASE = {"kind": "base", "label": "base"}
JOB = {"kind": "job", "label": "momo", "job_dir": "/jobs/7"}


def settings(**changes: Any) -> dict[str, Any]:
    return {"models": [BASE, JOB], "prompts": [{"prompt": "a"}], **changes}


def test_a_file_of_version_1_can_be_read_and_is_written_unchanged(tmp_path: Path) -> None:
    content = json.loads((GOLDEN / "sampling-v1.json").read_text(encoding="utf-8"))
    spec = make_sampling_spec(content)

    assert holds(json.loads(write_spec(tmp_path, spec).read_text(encoding="utf-8")), content)
    assert read_sampling(tmp_path) == spec


def test_the_cells_are_models_by_strengths_by_prompts_by_seeds_and_the_base_has_no_strength() -> None:
    spec = make_sampling_spec(
        settings(prompts=[{"prompt": "a"}, {"prompt": "b"}], seeds=[7, 8, 7], strengths=[0.5, 1, 1.0])
    )

    assert spec.images == len(spec.cells) == 2 * 2 + 2 * 2 * 2
    assert spec.cells[0] == Cell(index=0, model=0, strength=None, prompt=0, seed=7)
    assert spec.cells[4] == Cell(index=4, model=1, strength=0.5, prompt=0, seed=7)
    assert spec.cells[-1] == Cell(index=11, model=1, strength=1.0, prompt=1, seed=8)
    assert [cell.index for cell in spec.cells] == list(range(12))
    # One model and strength after the other: the weights change as seldom as possible.
    changes = [(cell.model, cell.strength) for cell in spec.cells]
    assert changes == sorted(changes, key=lambda change: (change[0], change[1] or 0))
    assert spec.cells[11].path == "samples/0011.png"


def test_wrong_settings_are_refused_in_sentences() -> None:
    wrong: dict[str, dict[str, Any]] = {
        "no prompts": {"prompts": []},
        "no models": {"models": []},
        "no seeds": {"seeds": []},
        "an empty prompt": {"prompts": [{"prompt": "  "}]},
        "a strength that is too high": {"strengths": [1.6]},
        "two models of one name": {"models": [JOB, JOB]},
        "a width alone": {"width": 512},
        "a side between the steps": {"width": 513, "height": 512},
        "too many images": {"models": [BASE, *({**JOB, "label": f"{n}"} for n in range(20))], "seeds": [*range(13)]},
        "a file outside of the job": {"models": [{"kind": "file", "label": "x", "path": "../x.safetensors"}]},
        "an unknown setting": {"stepps": 5},
    }
    sentences = {}
    for name, change in wrong.items():
        with pytest.raises(SpecError) as caught:
            make_sampling_spec(settings(**change))
        sentences[name] = str(caught.value)
    check_sentences(GOLDEN / "refused_sampling.txt", sentences)


def test_the_largest_grid_is_accepted() -> None:
    spec = make_sampling_spec(settings(models=[JOB], seeds=[*range(16)], strengths=[n / 16 for n in range(16)]))
    assert spec.images == MAX_IMAGES


@pytest.mark.parametrize(
    ("resolution", "sizes"),
    [
        (64, ((64, 64), (56, 72), (48, 80), (72, 56), (80, 48))),
        (512, ((512, 512), (448, 576), (384, 640), (576, 448), (640, 384))),
    ],
)
def test_common_sizes_fit_a_base(resolution: int, sizes: tuple[tuple[int, int], ...]) -> None:
    assert sampling_sizes(resolution) == sizes
    for size in sizes:
        check_size(size, [resolution])


@pytest.mark.parametrize("size", [(512, 512), (512, 768), (768, 512), (256, 1024), (448, 576)])
def test_sizes_near_the_resolution_are_drawn(size: tuple[int, int]) -> None:
    check_size(size, [512])


@pytest.mark.parametrize("size", [(1024, 1024), (128, 512), (1032, 384), (500, 512)])
def test_sizes_that_a_base_draws_badly_are_refused_with_some_that_fit(size: tuple[int, int]) -> None:
    with pytest.raises(SpecError, match=r"about 512 px well, not .* Sizes that fit: 512×512, "):
        check_size(size, [512])


def test_a_job_that_was_trained_at_another_resolution_widens_the_range() -> None:
    check_size((1024, 1024), [512, 1024])
