"""What a job finds out about its model at the end: planted copies, unrelated prompts, pictures that never learn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.trainer.tasks.random_embedders import make_clip
from tests.trainer.training.test_recipe import events, of_type
from trainer.protocol.events import EXIT_FINISHED, EXIT_STOPPED, Finished, Warned
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Split, read_report
from trainer.protocol.spec import read_spec
from trainer.report.insights import Forgetting, NearPicture, read_insight
from trainer.training.image_history import ImageHistory, PictureHistory, read_history
from trainer.training.insight_words import forgetting_in_words, memorization_in_words
from trainer.training.run import run
from trainer.training.stop import StopRequest

pytestmark = pytest.mark.timeout(600)

CHANGES: dict[str, Any] = {
    "training": {"epochs": 1, "learning_rate": 5e-3, "batch_size": 4, "micro_batch_size": 4},
    "method": {"rank": 4},
    "validation": {"timesteps": 2, "draws": 1},
    "samples": {"steps": 2, "prompts": ["a red egg", "a blue egg"], "unrelated_prompts": ["a lake", "a bowl"]},
}


@pytest.fixture(scope="module")
def finished(dataset: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job_dir = tmp_path_factory.mktemp("insight") / "job"
    spec_from_preset("lora", dataset=str(dataset), base=str(random_base), changes=CHANGES).write(job_dir)
    assert run(job_dir) == EXIT_FINISHED, events(job_dir)[-1]
    return job_dir


@pytest.fixture
def ending(finished: Path, tmp_path: Path) -> Path:
    """The same job just before its end, to be run again."""
    job_dir = tmp_path / "job"
    shutil.copytree(finished, job_dir)
    path = job_dir / "events.jsonl"
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if '"type":"finished"' not in line]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    (job_dir / "insight.json").unlink()
    return job_dir


def warnings(job_dir: Path, kind: str) -> list[str]:
    return [event.message for event in of_type(job_dir, Warned) if event.kind == kind]


def change_samples(job_dir: Path, **changes: object) -> None:
    spec = read_spec(job_dir)
    spec.model_copy(update={"samples": spec.samples.model_copy(update=changes)}).write(job_dir)


def test_a_job_ends_with_what_it_found_out_and_a_page(finished: Path) -> None:
    insight = read_insight(finished)
    (last,) = of_type(finished, Finished)

    assert last.report == "report.html"
    assert (finished / "report.html").is_file()
    assert insight.memorization is not None
    assert insight.forgetting is not None
    assert len(insight.memorization.pictures) == 4
    assert insight.forgetting.moved_features > 0
    assert insight.forgetting.another_seed is not None
    for path in ("output/nearest.png", "output/unrelated.png", insight.memorization.pictures[0].thumbnail):
        with Image.open(finished / path) as opened:
            opened.load()
    assert warnings(finished, "insight_failed") == []


def test_unrelated_prompts_are_drawn_by_both_models_with_the_same_seeds(finished: Path) -> None:
    folder = finished / "samples" / "unrelated"
    drawn = {side: sorted(path.name for path in (folder / side).iterdir()) for side in ("base", "best")}

    assert drawn["base"] == drawn["best"] == ["0.png", "1.png", "2.png", "3.png"]
    assert (folder / "base" / "0.png").read_bytes() != (folder / "best" / "0.png").read_bytes()


def test_a_sample_that_shows_a_training_picture_is_learnt_by_heart(ending: Path, dataset: Path) -> None:
    report = read_report(dataset)
    place, planted = next((n, i) for n, i in enumerate(report.images, 1) if i.split is Split.TRAIN and i.path)
    with Image.open(dataset / str(planted.path)) as opened:
        opened.convert("RGB").resize((64, 64)).save(ending / "samples" / "epoch-001" / "2.png")

    assert run(ending) == EXIT_FINISHED

    memorization = read_insight(ending).memorization
    assert memorization is not None
    assert [picture.is_same for picture in memorization.pictures] == [False, False, True, False]
    assert memorization.pictures[2].number == place
    assert memorization.pictures[2].name == planted.source
    assert memorization.sentence.startswith(f"1 of 4 samples shows the same as a training picture (no. {place})")


def test_pictures_that_never_learn_are_shown_and_warned_of(ending: Path) -> None:
    path = ending / "validation" / "images.json"
    hashes = [pixels for pixels, one in read_history(path).pictures.items() if one.split is Split.TRAIN]
    falling = {1: 0.5, 2: 0.42, 3: 0.41, 4: 0.4, 5: 0.4}
    flat = dict.fromkeys(range(1, 6), 1.0)
    curves = {
        pixels: PictureHistory(name=f"{n}.png", split=Split.TRAIN, ratios=falling if n else flat)
        for n, pixels in enumerate(hashes)
    }
    ImageHistory(pictures=curves).write(path)

    assert run(ending) == EXIT_FINISHED

    (picture,) = read_insight(ending).never_learnt
    assert picture.ratios == flat
    assert (ending / picture.thumbnail).is_file()
    (sentence,) = warnings(ending, "pictures_never_learnt")
    assert "0.png" in sentence
    assert "Never learnt" in (ending / "report.html").read_text(encoding="utf-8")


def test_a_clip_tells_likeness_to_prompts_before_and_after(ending: Path, tmp_path: Path) -> None:
    change_samples(ending, similarity_model=str(make_clip(tmp_path / "clip")))

    assert run(ending) == EXIT_FINISHED

    insight = read_insight(ending)
    assert insight.likeness is not None
    assert insight.likeness.before != insight.likeness.after
    assert insight.forgetting is not None
    assert insight.forgetting.likeness is not None
    assert insight.memorization is not None
    assert all(one.similarity is not None and -1 <= one.similarity <= 1.001 for one in insight.memorization.pictures)


def test_a_missing_similarity_model_is_warned_of_and_the_rest_is_found_out(ending: Path) -> None:
    change_samples(ending, similarity_model="/nowhere/clip")

    assert run(ending) == EXIT_FINISHED

    (sentence,) = warnings(ending, "insight_failed")
    assert "There is no similarity model in /nowhere/clip." in sentence
    assert read_insight(ending).memorization is not None


def test_what_breaks_never_costs_the_model(ending: Path) -> None:
    (ending / "validation" / "images.json").write_text("{torn", encoding="utf-8")

    assert run(ending) == EXIT_FINISHED

    (sentence,) = warnings(ending, "insight_failed")
    assert sentence.startswith("Pictures that never learn could not be looked at.")
    assert read_insight(ending).memorization is not None


def test_a_stop_request_is_no_failure_of_an_insight(ending: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.training import insight

    def stopped(*given: Any) -> Any:
        request = StopRequest()
        request.is_set = True
        request.check()

    monkeypatch.setattr(insight, "_open_album", stopped)

    assert run(ending) == EXIT_STOPPED
    assert warnings(ending, "insight_failed") == []


def near(number: int, *, is_same: bool = False, base_is_same: bool = False, distance: float = 1.0) -> NearPicture:
    return NearPicture(
        prompt="p",
        sample="s.png",
        thumbnail="t.jpg",
        number=number,
        name="n",
        is_same=is_same,
        is_mirrored=False,
        difference=1.0,
        distance=distance,
        base_is_same=base_is_same,
        base_distance=1.5,
    )


def test_memorization_is_said_in_words() -> None:
    clean = memorization_in_words([near(1), near(2, distance=1.4)])
    found = memorization_in_words([near(7, is_same=True), near(7, is_same=True), near(3, is_same=True), near(4)])
    known = memorization_in_words([near(7, is_same=True, base_is_same=True)])

    assert "nothing is learnt by heart" in clean
    assert clean.endswith("1.20 away by its features (median; the base model's samples: 1.50): nearer than before.")
    assert found.startswith("3 of 4 samples show the same as a training picture (no. 7, no. 3): they are learnt")
    assert "Of the base model's samples 1 does so too." in known
    assert memorization_in_words([near(1, distance=1.4)]).endswith("no nearer than before.")


@pytest.mark.parametrize(("moved", "words"), [(0.1, "almost as before"), (0.6, "less than that"), (1.1, "other")])
def test_forgetting_is_measured_against_another_seed(moved: float, words: str) -> None:
    found = Forgetting(
        sentence="",
        sheet="s.png",
        prompts=("p",),
        moved_pixels=0.12,
        moved_features=moved,
        another_seed=1.0,
        distance_before=2.0,
        distance_after=1.9,
    )

    assert words in forgetting_in_words(found)
    assert "nobody asked" not in forgetting_in_words(found)
    assert "nobody asked" in forgetting_in_words(found.model_copy(update={"distance_after": 1.0}))
    assert "another seed" not in forgetting_in_words(found.model_copy(update={"another_seed": None}))
