"""Sampling jobs: what they draw, where they go on after a kill or a stop, and what they refuse."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.trainer.conftest import SharedFolder
from tests.trainer.fork_server import ForkServer
from tests.trainer.job_events import events_of
from tests.trainer.models.random_adapters import method_of
from tests.trainer.random_base import make_random_sd2, make_random_sd3, make_random_sdxl
from tests.trainer.training.trained_jobs import make_trained_job
from trainer.exchange.job_dir import read_sampling, write_spec
from trainer.exchange.kept_epochs import kept_epochs
from trainer.models.base import load_base
from trainer.protocol.events import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    Failed,
    FailureKind,
    ImageDrawn,
    PhaseProgress,
    SamplingFinished,
    SamplingStarted,
    Stopped,
    TerminalEvent,
)
from trainer.protocol.run_options import JobKind, RunOptions
from trainer.protocol.sampling import make_sampling_spec
from trainer.protocol.settings import Base, MethodKind
from trainer.tasks import base_sampler, drawing
from trainer.trainer_failpoints import FAILPOINT_VARIABLE, POINTS
from trainer.training import sample_recipe
from trainer.training.run import KeptBase, run

#: The trainer's failpoints, and how often each is passed first; those of checkpoints and exports are of trainings.
KILLED = ("lock_held", "event_half_written:5", "event_written:6", "before_terminal_event", "after_terminal_event")
NOT_REACHED = {"checkpoint_half_written", "checkpoint_written", "epoch_emitted", "export_written"}

MakeSampling = Callable[..., Path]
BASE = {"kind": "base"}


@pytest.fixture(scope="module")
def lora(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trained_job(
        tmp_path_factory.mktemp("lora") / "job",
        str(random_base),
        method={"rank": 4, "targets": "attention", "text_encoder": True},
    )


@pytest.fixture
def make_sampling(random_base: Path, tmp_path: Path) -> MakeSampling:
    """Write the folder of a sampling job of two prompts and two seeds: `make_sampling("name", models=[…])`."""

    def make(name: str = "sampling", **settings: Any) -> Path:
        given = {
            "base": {"source": str(random_base)},
            "models": [BASE],
            "prompts": [{"prompt": "a red egg"}, {"prompt": "a blue egg", "negative": "red"}],
            "seeds": [1, 2],
            "steps": 2,
            **settings,
        }
        folder = tmp_path / name
        write_spec(folder, make_sampling_spec(given))
        return folder

    return make


def of_job(job_dir: Path, epoch: int | None = None, label: str = "") -> dict[str, Any]:
    return {"kind": "job", "label": label or f"epoch {epoch}", "job_dir": str(job_dir), "epoch": epoch}


def draw(job_dir: Path, kept: KeptBase | None = None, **options: Any) -> int:
    return run(RunOptions(job_dir=job_dir, kind=JobKind.SAMPLE, **options), kept=kept)


def pixels(job_dir: Path) -> list[str]:
    """A hash of each image, in the order of the cells."""
    hashes = []
    for path in sorted((job_dir / "samples").glob("[0-9]*.png")):
        with Image.open(path) as image:
            hashes.append(hashlib.sha256(image.tobytes()).hexdigest()[:12])
    return hashes


def by_cell(job_dir: Path) -> dict[tuple[int, float | None, int, int], str]:
    cells, found = read_sampling(job_dir).cells, pixels(job_dir)
    return {
        (cell.model, cell.strength, cell.prompt, cell.seed): image for cell, image in zip(cells, found, strict=True)
    }


def failure(job_dir: Path) -> Failed:
    (event,) = events_of(job_dir, TerminalEvent)
    assert isinstance(event, Failed)
    return event


def test_a_grid_is_drawn_with_the_same_seeds_in_every_cell(make_sampling: MakeSampling, lora: Path) -> None:
    job_dir = make_sampling(models=[BASE, of_job(lora, 1), of_job(lora, 3)], strengths=[0, 0.5, 1.0])

    assert draw(job_dir) == EXIT_FINISHED, events_of(job_dir)[-1]

    images = by_cell(job_dir)
    assert len(images) == (1 + 2 * 3) * 2 * 2
    for prompt in (0, 1):
        for seed in (1, 2):
            base = images[0, None, prompt, seed]
            # No strength at all is the base, to the bit: the noise is the same.
            assert images[1, 0.0, prompt, seed] == images[2, 0.0, prompt, seed] == base
            others = {images[model, strength, prompt, seed] for model in (1, 2) for strength in (0.5, 1.0)}
            assert len(others | {base}) == 5
    (started,) = events_of(job_dir, SamplingStarted)
    assert (started.images, started.already_drawn, started.width, started.height) == (28, 0, 64, 64)
    assert [event.cell for event in events_of(job_dir, ImageDrawn)] == list(range(28))
    (finished,) = events_of(job_dir, SamplingFinished)
    assert len(finished.sheets) == 2, "28 images do not fit on one"
    assert all((job_dir / sheet.path).is_file() for sheet in finished.sheets)
    assert {sheet.prompt for sheet in finished.sheets} == {0, 1}


def test_an_image_depends_on_its_own_cell_only(make_sampling: MakeSampling, lora: Path) -> None:
    whole, part = make_sampling("whole", models=[BASE, of_job(lora)]), make_sampling("part", models=[of_job(lora)])

    assert draw(whole) == draw(part) == EXIT_FINISHED

    expected = {key[2:]: image for key, image in by_cell(whole).items() if key[0] == 1}
    assert {key[2:]: image for key, image in by_cell(part).items()} == expected


def test_an_image_says_how_it_was_made_as_a1111_does(make_sampling: MakeSampling, lora: Path) -> None:
    job_dir = make_sampling(
        models=[of_job(lora, 3, "egg: the third")],
        prompts=[{"prompt": "a blue egg", "negative": "red"}],
        seeds=[7],
        strengths=[0.8],
        guidance=5.5,
    )
    assert draw(job_dir) == EXIT_FINISHED

    with Image.open(job_dir / "samples/0000.png") as image:
        prompt, negative, settings = image.info["parameters"].split("\n")
    assert (prompt, negative) == ("a blue egg <lora:lora-000003:0.8>", "Negative prompt: red")
    assert settings.startswith("Steps: 2, Sampler: DPM++ 2M, CFG scale: 5.5, Seed: 7, Size: 64x64, Model: ")
    assert settings.endswith('Trained model: "egg: the third", Strength: 0.8, Version: Darkroom')


def test_other_sizes_and_what_the_base_cannot_draw(make_sampling: MakeSampling) -> None:
    wide = make_sampling("wide", width=96, height=64)
    assert draw(wide) == EXIT_FINISHED
    with Image.open(wide / "samples/0000.png") as image:
        assert image.size == (96, 64)

    large = make_sampling("large", width=512, height=512)
    assert draw(large) == EXIT_FAILED
    assert failure(large).kind is FailureKind.BAD_SPEC
    assert "about 64 px well, not 512×512" in failure(large).message


@pytest.mark.parametrize(
    "kind",
    [
        MethodKind.LOHA,
        pytest.param(MethodKind.LOKR, marks=pytest.mark.slow),
        pytest.param(MethodKind.DORA, marks=pytest.mark.slow),
        pytest.param(MethodKind.IA3, marks=pytest.mark.slow),
        MethodKind.OFT,
        MethodKind.FULL,
        MethodKind.TEXTUAL_INVERSION,
    ],
)
def test_every_kind_is_drawn_from_its_files_and_from_its_checkpoints(
    random_base: Path, tmp_path: Path, make_sampling: MakeSampling, kind: MethodKind
) -> None:
    # On few layers: all of them are in test_applying.py.
    method = method_of(kind, targets="attention").model_dump(mode="json")
    if not kind.is_adapter:
        method = {"kind": kind.value, "text_encoder": kind is MethodKind.FULL, "vectors": 2}
    training = {"trigger": "egg"} if kind is MethodKind.TEXTUAL_INVERSION else {}
    job = make_trained_job(tmp_path / "job", str(random_base), epochs=1, best=1, method=method, training=training)
    settings = {"models": [BASE, of_job(job, 1)], "strengths": [0.0, 0.5, 1.0], "seeds": [1]}
    from_file, from_checkpoint = make_sampling("file", **settings), make_sampling("checkpoint", **settings)

    assert draw(from_file) == EXIT_FINISHED, events_of(from_file)[-1]
    shutil.rmtree(job / "output")
    assert draw(from_checkpoint) == EXIT_FINISHED, events_of(from_checkpoint)[-1]

    for job_dir in (from_file, from_checkpoint):
        images = by_cell(job_dir)
        for prompt in (0, 1):
            assert images[1, 0.0, prompt, 1] == images[0, None, prompt, 1]
            assert len({images[1, strength, prompt, 1] for strength in (0.0, 0.5, 1.0)}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "make_base"), [("sd2", make_random_sd2), ("sdxl", make_random_sdxl), ("sd3", make_random_sd3)]
)
def test_every_family_draws(
    tmp_path: Path,
    make_sampling: MakeSampling,
    shared_folder: SharedFolder,
    family: str,
    make_base: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if it was large, so that its memory is predicted.
    monkeypatch.setattr(base_sampler, "_SMALL_SHARE", 0.0)
    base = shared_folder(family, make_base)
    job = make_trained_job(tmp_path / "job", str(base), epochs=1, best=1, method={"rank": 2, "text_encoder": True})
    settings = {"models": [BASE, of_job(job, 1)], "strengths": [0.0, 1.0], "base": {"source": str(base)}}
    job_dir = make_sampling(**settings, width=96, height=64)

    assert draw(job_dir) == EXIT_FINISHED, events_of(job_dir)[-1]

    images = by_cell(job_dir)
    for prompt in (0, 1):
        assert images[0, None, prompt, 1] == images[1, 0.0, prompt, 1] != images[1, 1.0, prompt, 1]


def test_a_running_job_is_drawn_by_its_best_epoch_so_far(
    random_base: Path, tmp_path: Path, make_sampling: MakeSampling
) -> None:
    job = make_trained_job(tmp_path / "job", str(random_base), epochs=2, best=1, is_finished=False)
    job_dir = make_sampling(models=[of_job(job, None, "best"), of_job(job, 1), of_job(job, 2)], seeds=[1])

    assert draw(job_dir) == EXIT_FINISHED, events_of(job_dir)[-1]

    images = by_cell(job_dir)
    assert images[0, 1.0, 0, 1] == images[1, 1.0, 0, 1] != images[2, 1.0, 0, 1]


def foreign(path: Path, lora: Path, version: str) -> None:
    """Write the file of the job's third epoch as that from elsewhere."""
    tensors = load_file(lora / "output/epochs/lora-000003.safetensors")
    save_file(tensors, path, {"ss_base_model_version": version})


def test_a_file_of_another_place_is_drawn_like_the_job_that_made_it(make_sampling: MakeSampling, lora: Path) -> None:
    theirs = {"kind": "file", "label": "theirs", "path": "theirs.safetensors"}
    job_dir = make_sampling(models=[of_job(lora, 3), theirs, BASE], seeds=[1])
    foreign(job_dir / "theirs.safetensors", lora, "sd_v1")

    assert draw(job_dir) == EXIT_FINISHED, events_of(job_dir)[-1]

    ours, same, base = (
        np.asarray(Image.open(job_dir / f"samples/000{number}.png"), dtype=float) for number in (0, 2, 4)
    )
    # The weights are merged by other formulas: a rounding.
    assert abs(ours - same).max() <= 2
    assert abs(ours - base).max() > 10


@pytest.mark.parametrize("tensor", ["emb_params", "<momo>"])
def test_a_word_of_another_place_changes_the_images_whose_prompts_have_it(
    make_sampling: MakeSampling, random_base: Path, tensor: str
) -> None:
    theirs = {"kind": "file", "label": "theirs", "path": "momo.safetensors"}
    job_dir = make_sampling(models=[theirs, BASE], seeds=[1], prompts=[{"prompt": "a momo egg"}, {"prompt": "an egg"}])
    width = load_base(Base(source=str(random_base))).text_encoders["text_encoder"].config.hidden_size
    vectors = torch.randn((2, width), generator=torch.Generator().manual_seed(5))
    save_file({tensor: vectors}, job_dir / "momo.safetensors", {"ss_base_model_version": "sd_v1"})

    assert draw(job_dir) == EXIT_FINISHED, events_of(job_dir)[-1]

    with_word, without, base_with_word, base_without = pixels(job_dir)
    assert with_word != base_with_word
    assert without == base_without


@pytest.mark.parametrize(
    ("version", "cut", "sentence"),
    [
        ("sdxl_base_v1-0", 0, "theirs is for SDXL, and this base is SD 1.x"),
        ("", 0, "is not for Stable Diffusion 1, 2, XL or 3"),
        ("sd_v1", 1, "is cut off"),
        ("sd_v1", None, "is not in the job's folder"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    make_sampling: MakeSampling, lora: Path, version: str, cut: int | None, sentence: str
) -> None:
    job_dir = make_sampling(models=[{"kind": "file", "label": "theirs", "path": "theirs.safetensors"}])
    path = job_dir / "theirs.safetensors"
    foreign(path, lora, version)
    if cut is None:
        # What the bot names must lie inside of the folder.
        path.rename(job_dir.parent / "outside.safetensors")
        path.symlink_to(job_dir.parent / "outside.safetensors")
    elif cut:
        path.write_bytes(path.read_bytes()[:-cut])

    assert draw(job_dir) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_SPEC
    assert sentence in failure(job_dir).message
    assert not (job_dir / "samples").exists()


@pytest.mark.slow
def test_a_kill_loses_at_most_the_images_of_a_batch(
    fork_server: ForkServer, make_sampling: MakeSampling, lora: Path
) -> None:
    undisturbed, job_dir = (make_sampling(name, models=[BASE, of_job(lora)]) for name in ("undisturbed", "killed"))
    assert draw(undisturbed) == EXIT_FINISHED

    assert {point.partition(":")[0] for point in KILLED} == set(POINTS) - NOT_REACHED
    drawn = 0
    for point in KILLED:
        done = fork_server.run("sample", str(job_dir), log=job_dir / "log", env={FAILPOINT_VARIABLE: point})
        assert done.returncode == -signal.SIGKILL, (point, (job_dir / "log").read_text())
        assert len(pixels(job_dir)) >= drawn
        drawn = len(pixels(job_dir))

    assert pixels(job_dir) == pixels(undisturbed)
    assert len(events_of(job_dir, TerminalEvent)) == 1
    # Killed after its last event, it is over; started once more, it draws nothing again.
    assert draw(job_dir) == EXIT_FINISHED
    counts = Counter(event.cell for event in events_of(job_dir, ImageDrawn))
    assert counts == dict.fromkeys(range(8), 1)
    assert events_of(job_dir, SamplingStarted)[-1].already_drawn == 8


def test_a_stop_ends_it_within_a_step_and_the_next_run_goes_on(
    make_sampling: MakeSampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir = make_sampling(seeds=[1, 2, 3])
    write = sample_recipe._GridRun._write

    def write_and_stop(self: Any, cell: Any, image: Any) -> None:
        write(self, cell, image)
        self.stop.is_set = True

    with monkeypatch.context() as patched:
        patched.setattr(sample_recipe._GridRun, "_write", write_and_stop)
        assert draw(job_dir) == EXIT_STOPPED
    (stopped,) = events_of(job_dir, Stopped)
    # The first batch was drawn already.
    assert stopped.step == len(pixels(job_dir)) == 4
    before = {path.name: path.stat().st_mtime_ns for path in (job_dir / "samples").iterdir()}

    assert draw(job_dir) == EXIT_FINISHED
    assert len(pixels(job_dir)) == 6
    after = {path.name: path.stat().st_mtime_ns for path in (job_dir / "samples").iterdir()}
    assert before.items() <= after.items(), "what was drawn is not drawn again"
    assert [event.cell for event in events_of(job_dir, ImageDrawn)] == list(range(6))


def test_one_progress_runs_over_the_whole_grid(
    make_sampling: MakeSampling, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_recipe, "_PROGRESS_INTERVAL_S", 0.0)
    job_dir = make_sampling(models=[BASE, of_job(lora)], strengths=[0.5, 1])

    assert draw(job_dir) == EXIT_FINISHED

    counts = [(event.done, event.total) for event in events_of(job_dir, PhaseProgress)]
    assert counts == sorted(counts)
    assert {total for _done, total in counts} == {12}
    assert counts[-1][0] == 12


def test_a_warm_process_keeps_the_base_and_draws_the_same(make_sampling: MakeSampling, lora: Path) -> None:
    kept = KeptBase()
    first, cold = (make_sampling(name, models=[of_job(lora, 1), BASE]) for name in ("first", "cold"))
    again = make_sampling("again", models=[of_job(lora, 1), BASE])
    other = make_sampling("other", base={"source": "tiny"}, prompts=[{"prompt": "a red circle"}])

    assert draw(first, kept) == EXIT_FINISHED
    sampler = kept.sampler
    assert draw(again, kept) == EXIT_FINISHED
    assert kept.sampler is sampler
    assert draw(cold) == EXIT_FINISHED
    assert pixels(first) == pixels(again) == pixels(cold)
    assert [events_of(job, SamplingStarted)[0].was_warm for job in (first, again)] == [False, True]

    assert draw(other, kept) == EXIT_FINISHED
    assert kept.sampler is not sampler
    assert not events_of(other, SamplingStarted)[0].was_warm


def test_after_a_failure_the_base_is_loaded_again(make_sampling: MakeSampling, lora: Path, tmp_path: Path) -> None:
    kept = KeptBase()
    broken = tmp_path / "broken"
    shutil.copytree(lora, broken)
    shutil.rmtree(broken / "output")
    (broken / "checkpoints/step-00000002/weights.safetensors").write_bytes(b"damaged")
    job_dir, after = make_sampling("bad", models=[BASE, of_job(broken, 2)]), make_sampling("after")

    assert draw(job_dir, kept) == EXIT_FAILED
    assert failure(job_dir).kind is FailureKind.BAD_CHECKPOINT
    assert len(pixels(job_dir)) == 4, "what was drawn before is kept"
    assert draw(after, kept) == EXIT_FINISHED
    assert not events_of(after, SamplingStarted)[0].was_warm


def test_what_does_not_fit_is_drawn_in_smaller_batches(
    make_sampling: MakeSampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir, small = make_sampling(seeds=[1, 2, 3]), make_sampling("small", seeds=[1, 2, 3])
    assert draw(small, micro_batch=1) == EXIT_FINISHED
    batches: list[int] = []

    def run_out(*arguments: Any, batch: int, **options: Any) -> Any:
        batches.append(batch)
        if batch > 1:
            raise torch.OutOfMemoryError
        return drawing.draw_batches(*arguments, batch=batch, **options)

    monkeypatch.setattr(base_sampler, "draw_batches", run_out)
    assert draw(job_dir) == EXIT_FINISHED, events_of(job_dir)[-1]
    assert batches == [4, 2, 1]
    assert pixels(job_dir) == pixels(small)


def test_what_cannot_fit_is_refused_before_it_is_drawn(
    make_sampling: MakeSampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_sampler, "total_memory_bytes", lambda device: 2**20)
    # A real prediction takes a second of CPU; one is in test_base_sampler.py.
    monkeypatch.setattr(base_sampler, "predict_sampling", lambda *_arguments, **_options: 2**20)
    job_dir = make_sampling()
    assert draw(job_dir, micro_batch=1) == EXIT_FAILED
    assert "Drawing one image of 64×64 needs about" in failure(job_dir).message
    assert not (job_dir / "samples").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("no such epoch", r"weights of epoch 9 are not kept.*epochs 1, 2 and 3"),
        ("no folder", "cannot be read"),
        ("another base", r"was trained on .*, and these images are drawn with tiny"),
        ("nothing yet", "has no weights to draw with"),
        ("another prediction", "different predictions"),
    ],
)
def test_models_that_cannot_be_drawn_are_refused_with_a_reason(
    make_sampling: MakeSampling, lora: Path, tmp_path: Path, random_base: Path, change: str, sentence: str
) -> None:
    settings: dict[str, Any] = {"models": [of_job(lora, 9)]}
    if change == "no folder":
        settings = {"models": [of_job(tmp_path / "gone", 1)]}
    elif change == "another base":
        settings = {"models": [of_job(lora, 1)], "base": {"source": "tiny"}}
    elif change == "nothing yet":
        job = make_trained_job(tmp_path / "new", str(random_base), epochs=0, best=0, is_finished=False)
        settings = {"models": [of_job(job, None, "new")]}
    elif change == "another prediction":
        job = make_trained_job(
            tmp_path / "v", str(random_base), epochs=1, best=1, objective={"prediction": "v_prediction"}
        )
        settings = {"models": [of_job(lora, 1, "one"), of_job(job, 1, "two")]}
    job_dir = make_sampling(**settings)

    assert draw(job_dir) == EXIT_FAILED
    found = failure(job_dir)
    assert found.kind is FailureKind.BAD_SPEC
    assert re.search(sentence, f"{found.message} {found.hint}"), found


def test_the_epochs_of_a_job_are_found(lora: Path) -> None:
    kept = kept_epochs(lora, events_of(lora))

    assert kept.best == 2
    assert [str(path.relative_to(lora)) for path in kept.paths.values()] == [
        "checkpoints/step-00000001",
        "output/diffusers/pytorch_lora_weights.safetensors",
        "output/epochs/lora-000003.safetensors",
    ]
    assert kept.is_checkpoint(1)
    assert not kept.is_checkpoint(3)
