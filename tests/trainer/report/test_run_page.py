"""The page of a training shows what became of it, in any state, and hostile text in it stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from tests.golden import check_golden, check_sentences
from tests.trainer.report.html_page import HOSTILE, Page, page_of
from trainer.__main__ import main
from trainer.exchange.job_dir import write_spec
from trainer.protocol.events import EXIT_REFUSED, Event, Exported, parse_event
from trainer.protocol.spec import Spec, make_spec
from trainer.report.insights import (
    Forgetting,
    Insight,
    Memorization,
    NearImage,
    NeverLearned,
    PromptSimilarity,
    write_insight,
)
from trainer.report.run_page import (
    SHARED_PAGE_NAME,
    changed_settings,
    format_setting,
    headline,
    how_to_load,
    write_run_page,
)

# The charts are those of test_charts.py, and drawing them takes most of the time.
pytestmark = pytest.mark.usefixtures("quick_charts")

GOLDEN = Path(__file__).parent / "golden"
SPEC = make_spec(
    {
        "dataset": "/data/momo",
        "name": "momo",
        "training": {"epochs": 20, "trigger": "momo", "optimizer_arguments": {"betas": [0.9, 0.98]}},
        "samples": {"prompts": ["a momo", "a star"]},
    }
)


def loss(ratio: float, *, has_interval: bool = True) -> dict[str, Any]:
    bands = [{"first_timestep": 0, "last_timestep": 499, "loss": 0.1, "ratio": ratio}]
    bands.append({"first_timestep": 500, "last_timestep": 999, "loss": 0.2, "ratio": ratio})
    interval = {"ratio_low": ratio - 0.03, "ratio_high": ratio + 0.03} if has_interval else {}
    return {"loss": ratio / 10, "ratio": ratio, "bands": bands, **interval}


def epoch(number: int, ratio: float, best: int, **given: Any) -> dict[str, Any]:
    return {
        "type": "epoch_ended",
        "epoch": number,
        "step": number * 10,
        "train_loss": 0.1234,
        "validation": loss(ratio),
        "learning_rate": 1e-4,
        "seconds": 30.0,
        "is_best": number == best,
        "best_epoch": best,
        "chart": "charts/loss 1.png",
        **given,
    }


STARTED = {
    "type": "started",
    "pid": 1,
    "device": "a GPU",
    "precision": "bf16",
    "epochs": 20,
    "total_steps": 200,
    "train_images": 26,
    "validation_images": 6,
    "test_images": 5,
    "resolution": 512,
    "trainable_parameters": 1_234_567,
    "data_summary": "An epoch shows 26 images of momo 4 times.",
    "micro_batch_size": 2,
    "batch_size": 4,
}
STAGE = {
    "type": "stage_began",
    "stage": 1,
    "name": "decoder",
    "first_epoch": 1,
    "last_epoch": 20,
    "learning_rate": 1e-4,
    "optimizer": "adamw",
    "schedule": "cosine",
    "resolution": 512,
    "trainable_parameters": 1_234_567,
    "parts": [
        {"name": "unet.mid_block", "trainable": 25, "total": 100},
        {"name": "unet.conv_in", "trainable": 0, "total": 50},
    ],
}
STEP = {
    "type": "step_done",
    "step": 10,
    "epoch": 1,
    "loss": 0.1,
    "learning_rate": 1e-4,
    "steps_per_s": 2.5,
    "eta_s": None,
    "peak_memory_bytes": 3 * 2**30,
}
EVENTS: tuple[dict[str, Any], ...] = (
    STARTED,
    {"type": "base_validated", "validation": loss(1.0)},
    STAGE,
    STEP,
    epoch(1, 0.8, 1),
    epoch(2, 0.61, 2, gap=0.05, train_validation=loss(0.58), metrics={"top_5": 0.75}),
    epoch(3, 0.7, 2),
    {
        "type": "stopped_early",
        "epoch": 3,
        "best_epoch": 2,
        "best_ratio": 0.61,
        "reason": "No better than epoch 2 for 1 epoch.",
        "epochs_saved": 17,
        "seconds_saved": 500.0,
    },
    {"type": "tested", "test": loss(0.63), "base_loss": 0.1},
    {
        "type": "exported",
        "format": "kohya",
        "path": "output/momo.safetensors",
        "bytes": 2 * 2**20,
        "sha256": "ab" * 32,
        "max_difference": 1e-4,
        "readers": ["A1111", "Forge", "ComfyUI", "diffusers"],
        "modules": ["unet"],
    },
    {"type": "warned", "kind": "idle_setting", "message": "training.keep_tags does nothing."},
)
FINISHED = {
    "type": "finished",
    "epochs": 3,
    "best_epoch": 2,
    "stopped_early": True,
    "base_loss": 0.1,
    "best_loss": 0.061,
    "best_ratio": 0.61,
    "seconds": 7500.0,
    "comparison": "output/comparison.png",
    "comparison_alt": "Above the base model.",
}


def events_from(*contents: dict[str, Any]) -> tuple[Event, ...]:
    return tuple(
        parse_event(json.dumps({"seq": number, "time": 1.0, **content})) for number, content in enumerate(contents, 1)
    )


def draw_red(job_dir: Path, *paths: str) -> None:
    for path in paths:
        (job_dir / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(job_dir / path)


def sampled(number: int, prompts: Sequence[str] = ("a momo", "a star")) -> dict[str, Any]:
    folder = f"samples/epoch-{number:03}"
    samples = [{"path": f"{folder}/{n}.png", "prompt": prompt, "seed": n} for n, prompt in enumerate(prompts)]
    return {"type": "sampled", "epoch": number, "samples": samples, "sheet": f"{folder}/sheet.png"}


def insight_of(words: str) -> Insight:
    near = NearImage(
        prompt=words,
        sample="samples/epoch-002/0.png",
        thumbnail="insight/0-00012.jpg",
        number=12,
        name=words,
        dataset=words,
        is_same=True,
        is_mirrored=True,
        difference=3.0,
        distance=0.25,
        similarity=0.91,
        base_is_same=False,
        base_distance=1.75,
        base_similarity=0.42,
    )
    return Insight(
        memorization=Memorization(sentence=f"Heart: {words}", sheet="output/nearest.png", images=(near,)),
        forgetting=Forgetting(
            sentence=f"Forgot: {words}",
            sheet="output/unrelated.png",
            prompts=(words,),
            moved_pixels=0.1,
            moved_features=0.5,
            another_seed=1.0,
            distance_before=2.0,
            distance_after=1.5,
            prompt_similarity=PromptSimilarity(before=0.31, after=0.29),
        ),
        never_learned=(NeverLearned(number=3, name=words, thumbnail="insight/0-00003.jpg", ratios={1: 1.0, 2: 1.02}),),
        never_learned_sentence=f"Wrong: {words}",
        usual_ratios={1: 0.8, 2: 0.6},
        similarity_model=words,
    )


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    return drawn_job(tmp_path)


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(write_full_page(drawn_job(tmp_path_factory.mktemp("plain"))))


def drawn_job(tmp_path: Path) -> Path:
    draw_red(tmp_path, "charts/loss 1.png", "output/comparison.png", "output/nearest.png", "output/unrelated.png")
    draw_red(tmp_path, "insight/0-00012.jpg", "insight/0-00003.jpg")
    draw_red(tmp_path, *(f"samples/epoch-{n:03}/{name}.png" for n in range(4) for name in ("0", "1", "sheet")))
    (tmp_path / "data.json").write_text(
        json.dumps([{"dataset": "momo", "role": "train", "images": 26, "views": 104, "share": 1.0, "per_image": 4.0}]),
        encoding="utf-8",
    )
    return tmp_path


def write_full_page(job_dir: Path) -> Path:
    write_insight(insight_of("a word"), job_dir)
    return write_run_page(job_dir, SPEC, events_from(*EVENTS, *(sampled(n) for n in range(4)), FINISHED))


def test_the_page_of_a_finished_job(job_dir: Path) -> None:
    lines = (line.strip() for line in page_of(write_full_page(job_dir)).lines)
    check_golden(GOLDEN / "run_page.txt", "\n".join(filter(None, lines)))


def test_every_image_and_link_of_the_page_exists_and_none_leads_out(job_dir: Path) -> None:
    page = page_of(write_full_page(job_dir))
    (job_dir / "output" / "momo.safetensors").touch()

    linked = [unquote(link["src"]) for link in page.all("img")] + [unquote(link["href"]) for link in page.all("a")]

    assert len(page.all("img")) >= 14
    assert {link[1:] for link in linked if link.startswith("#")} <= page.ids()
    for link in linked:
        assert link.startswith("#") or (job_dir / link).is_file(), link


def test_the_page_that_is_sent_alone_has_its_images_in_it_and_leads_to_no_file(job_dir: Path) -> None:
    page = page_of(write_full_page(job_dir).with_name(SHARED_PAGE_NAME))

    assert len(page.all("img")) >= 14
    assert all(
        link["src"].startswith(("data:image/webp;base64,", "data:image/jpeg;base64,")) for link in page.all("img")
    )
    assert all(link.get("href", "#").startswith("#") for link in page.all("a"))
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "img-src data:;" in policy


def test_the_page_runs_no_script_and_loads_nothing(job_dir: Path) -> None:
    page = page_of(write_full_page(job_dir))

    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)

    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert page.all("script") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(job_dir: Path, plain_page: Page, text: str) -> None:
    write_insight(insight_of(text), job_dir)
    spec = SPEC.model_copy(
        update={
            "dataset": text,
            "training": SPEC.training.model_copy(update={"trigger": text}),
            "samples": SPEC.samples.model_copy(update={"prompts": (text, text)}),
        }
    )
    events = [{**each, **({"name": text} if each["type"] == "stage_began" else {})} for each in EVENTS]
    events += [{"type": "warned", "kind": "k", "message": text}, *(sampled(n, (text, text)) for n in range(4))]

    page = page_of(write_run_page(job_dir, spec, events_from(*events, {**FINISHED, "comparison_alt": text})))

    # One more line in a list of warnings, one more changed setting, and nothing else.
    assert [tag for tag, _ in page.tags if tag not in {"li", "tr", "td", "code", "bdi"}] == [
        tag for tag, _ in plain_page.tags if tag not in {"li", "tr", "td", "code", "bdi"}
    ]
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", page.text)
    assert [link["href"] for link in page.all("a")] == [link["href"] for link in plain_page.all("a")]


def test_a_classifier_has_a_confusion_matrix_and_metrics(job_dir: Path) -> None:
    spec = make_spec({"dataset": "/d", "task": "classification", "method": {"kind": "full"}})
    draw_red(job_dir, "charts/test.png")
    tested = {"type": "tested", "test": loss(0.5), "base_loss": 1.0, "chart": "charts/test.png"}
    tested["metrics"] = {"accuracy": 0.92, "f1": 0.88}

    page = page_of(write_run_page(job_dir, spec, events_from(STARTED, epoch(1, 0.5, 1), tested, FINISHED)))

    assert {"92", "0.88"} <= set(page.words.split())
    assert "charts/test.png" in [link["src"] for link in page.all("img")]


FAILED = {"type": "failed", "kind": "diverged", "message": "It diverged.", "hint": "Take a lower rate."}
STOPPED = {"type": "stopped", "epoch": 4, "step": 33, "checkpoint": "checkpoints/33"}
RUNNING = {"type": "phase_began", "phase": "training"}


@pytest.mark.parametrize(("last", "state"), [(FAILED, "failed"), (STOPPED, "stopped"), (RUNNING, "running")])
def test_the_page_of_an_unfinished_job_has_its_state(job_dir: Path, last: dict[str, Any], state: str) -> None:
    page = page_of(write_run_page(job_dir, SPEC, events_from(STARTED, epoch(1, 0.8, 1), last)))

    assert f"state {state}" in " ".join(attributes.get("class", "") for attributes in page.all("span"))


def test_the_epochs_are_unfolded_if_there_are_curves_to_read_with_them(job_dir: Path) -> None:
    page = page_of(write_full_page(job_dir))

    assert ["open" in attributes for attributes in page.all("details")] == [True, True, False]


def test_of_many_epochs_the_filmstrip_shows_a_few_and_always_the_best(job_dir: Path) -> None:
    events = [event for number in range(1, 41) for event in (epoch(number, 0.8, 33), sampled(number))]

    page = page_of(write_run_page(job_dir, SPEC, events_from(STARTED, *events)))

    frames = [figure.get("class", "") for figure in page.all("figure")]
    strips = len(sampled(1)["samples"])
    assert frames.count("best") == strips
    assert 8 * strips <= len(frames) <= 12 * strips


def test_no_path_of_the_machine_is_on_the_page(job_dir: Path) -> None:
    spec = make_spec(
        {
            "dataset": "/srv/secret/datasets/0123/prepared",
            "name": "momo",
            "base": {"source": "/srv/secret/models/sd15.safetensors"},
            "mix": [{"dataset": "/srv/secret/datasets/4567/prepared"}],
        }
    )

    text = write_run_page(job_dir, spec, events_from(STARTED, epoch(1, 0.8, 1))).read_text(encoding="utf-8")

    assert "/srv" not in text
    assert "sd15.safetensors" in text


def test_the_charts_are_drawn_for_light_pages_too(job_dir: Path) -> None:
    page = page_of(write_run_page(job_dir, SPEC, events_from(STARTED, epoch(1, 0.8, 1))))

    light = [unquote(source["srcset"]) for source in page.all("source")]
    assert light == ["charts/loss-light.png"]
    assert (job_dir / light[0]).is_file()


def test_a_job_without_events_has_a_page(tmp_path: Path) -> None:
    assert page_of(write_run_page(tmp_path, SPEC, ())).all("img") == []


def test_the_headline_has_state_and_loss() -> None:
    without_validation = make_spec({"dataset": "/d", "training": {"epochs": 3}, "split": {"kind": "all"}})
    open_interval = epoch(20, 0.5, 20, validation=loss(0.5, has_interval=False))
    cases: dict[str, tuple[Spec, tuple[Event, ...]]] = {
        "failed": (SPEC, events_from(STARTED, epoch(1, 0.8, 1), FAILED)),
        "stopped": (SPEC, events_from(STARTED, epoch(1, 0.8, 1), STOPPED)),
        "running": (SPEC, events_from(STARTED, epoch(1, 0.8, 1), RUNNING)),
        "no events": (SPEC, ()),
        "no validation images": (without_validation, events_from(epoch(3, 0.5, 3), FINISHED)),
        "no interval": (SPEC, events_from(open_interval, FINISHED)),
    }
    check_sentences(GOLDEN / "headlines.txt", {case: " ".join(headline(*given)) for case, given in cases.items()})


def test_only_settings_that_differ_are_listed() -> None:
    changed = {setting.name: (setting.value, setting.default) for setting in changed_settings(SPEC)}

    assert changed == {
        "name": ("momo", "lora"),
        "training.trigger": ("momo", "–"),
        "training.optimizer_arguments": ('{"betas": [0.9, 0.98]}', "–"),
        "samples.prompts": ('["a momo", "a star"]', "–"),
    }


@pytest.mark.parametrize(
    ("readers", "shown"),
    [
        (["A1111", "ComfyUI"], ["A1111, Forge: into models/Lora", "ComfyUI: into models/loras"]),
        (["ComfyUI"], ["ComfyUI: into models/loras"]),
        (["LyCORIS"], []),
        (["diffusers", "Forge"], ["pipe.load_lora_weights(", "A1111, Forge: into models/Lora"]),
    ],
)
def test_a_file_is_loaded_by_its_readers_only(readers: list[str], shown: list[str]) -> None:
    known = {"format": "kohya", "path": "output/x.safetensors", "bytes": 1, "sha256": "0", "modules": ["unet"]}
    file = Exported.model_validate({"seq": 1, "time": 0, **known, "readers": readers})

    lines = how_to_load(file)

    assert [start for start, line in zip(shown, lines, strict=True) if line.startswith(start)] == shown


def test_epochs_files_that_are_gone_are_not_listed(job_dir: Path) -> None:
    files = [{**event, "path": f"output/epochs/momo-{epoch:06d}.safetensors", "epoch": epoch, "max_difference": None}
             for event in EVENTS if event["type"] == "exported" for epoch in (1, 2)]  # fmt: skip
    (job_dir / "output/epochs").mkdir(parents=True)
    (job_dir / "output/epochs/momo-000002.safetensors").write_bytes(b"x")

    page = write_run_page(job_dir, SPEC, events_from(*EVENTS, *files, FINISHED)).read_text()

    assert "momo-000002.safetensors" in page
    assert "momo-000001.safetensors" not in page


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (1e-4, "0.0001"), (True, "true"), ("cosine", "cosine"), ([1, 2], "[1, 2]")]
)
def test_a_setting_is_formatted_as_it_is_written_on_the_command_line(value: object, text: str) -> None:
    assert format_setting(value) == text


def test_the_command_writes_the_page_of_any_job_again(
    job_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_spec(job_dir, SPEC)
    lines = [event.model_dump_json() for event in events_from(*EVENTS)]
    # The last line is being written just now.
    (job_dir / "events.jsonl").write_text("\n".join(lines) + '\n{"seq": 99, "ty', encoding="utf-8")

    assert main(["report", str(job_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(job_dir / "report.html")
    assert (job_dir / "report.html").is_file()


def test_the_command_refuses_a_folder_without_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == EXIT_REFUSED
    assert "spec.json" in capsys.readouterr().err

    write_spec(tmp_path, Spec(dataset="/d"))
    (tmp_path / "events.jsonl").write_text("nonsense\n", encoding="utf-8")

    assert main(["report", str(tmp_path)]) == EXIT_REFUSED
    assert "events.jsonl" in capsys.readouterr().err
