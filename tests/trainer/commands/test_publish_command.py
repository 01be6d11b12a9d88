"""`trainer publish` uploads to a stand-in of the hub: private, with its card, again after a kill, and refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from huggingface_hub import ModelCard, constants

from tests.trainer.commands.hub import TOKEN, Hub, serve_hub
from trainer.__main__ import main
from trainer.exchange.job_dir import write_spec
from trainer.protocol.events import (
    EXIT_FINISHED,
    EXIT_REFUSED,
    Exported,
    ExportFormat,
    Finished,
    Reader,
    Sample,
    Sampled,
)
from trainer.protocol.hub import Published, repository_of
from trainer.protocol.spec import make_spec
from trainer.report.model_card import front_matter, license_of

REPOSITORY = "ana/fox-12"
Publish: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as served:
        yield served


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    """A finished job, with two files of its best epoch and one of another."""
    folder = tmp_path / "job"
    for name, content in {
        "output/fox.safetensors": b"kohya" * 1000,
        "output/diffusers/pytorch_lora_weights.safetensors": b"diffusers" * 1000,
        "output/epochs/fox-3.safetensors": b"other" * 1000,
        "output/notes.txt": b"private",
        "samples/2/0.png": b"\x89PNG 0",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    spec = make_spec(
        {
            "name": "fox",
            "dataset": str(tmp_path / "gone"),
            "base": {"source": "stabilityai/stable-diffusion-xl-base-1.0"},
            "training": {"trigger": 'zkz: "#1"'},
        }
    )
    write_spec(folder, spec)
    paths = ("output/fox.safetensors", "output/diffusers/pytorch_lora_weights.safetensors")
    formats = (ExportFormat.KOHYA, ExportFormat.DIFFUSERS)
    events = [
        Sampled(
            seq=1,
            time=0,
            epoch=2,
            sheet="s.png",
            samples=(Sample(path="samples/2/0.png", prompt="zkz | [x](y) -- \n- a: b", seed=7),),
        ),
        *(
            Exported(
                seq=2 + n,
                time=0,
                format=kind,
                path=path,
                bytes=5000,
                sha256="ab" * 32,
                readers=(Reader.DIFFUSERS,),
                modules=("unet",),
            )
            for n, (kind, path) in enumerate(zip(formats, paths, strict=True))
        ),
        Exported(
            seq=4, time=0, format=formats[0], path="output/epochs/fox-3.safetensors", bytes=5, sha256="ab" * 32, epoch=3
        ),
        Finished(
            seq=5,
            time=0,
            epochs=3,
            best_epoch=2,
            stopped_early=False,
            base_loss=1,
            best_loss=0.5,
            best_ratio=0.5,
            seconds=9,
            comparison="output/comparison.png",
            comparison_alt="",
        ),
    ]
    (folder / "events.jsonl").write_text("".join(each.model_dump_json() + "\n" for each in events))
    return folder


def start(hub: Hub, job_dir: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "trainer", "publish", str(job_dir), "--repository", REPOSITORY]
    home = job_dir.parent / "home"
    # Xet's own servers have no stand-in; without it the client uses LFS.
    env = {
        "PATH": os.environ["PATH"], "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def publish(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Publish:
    """Publish in this process, without a second of imports; return status, standard output and errors."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def run(job_dir: Path, *options: str, token: str = TOKEN) -> tuple[int, str, str]:
        monkeypatch.setenv("HF_TOKEN", token)
        status = main(["publish", str(job_dir), "--repository", REPOSITORY, *options])
        return status, *capsys.readouterr()

    return run


def test_a_job_is_uploaded_once_and_privately_with_its_card(hub: Hub, job_dir: Path, publish: Publish) -> None:
    with start(hub, job_dir) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == EXIT_FINISHED, err
    published = Published.model_validate_json(out)
    assert published.url == f"{hub.url}/{REPOSITORY}"
    assert published.is_private
    assert not published.is_unchanged
    files = hub.files(REPOSITORY)
    assert set(files) == {
        "README.md", "fox.safetensors", "diffusers/pytorch_lora_weights.safetensors", "images/0.png"
    }  # fmt: skip
    assert files["fox.safetensors"] == b"kohya" * 1000
    card: Any = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert card.data.license == "openrail++"
    assert card.data.to_dict()["instance_prompt"] == 'zkz: "#1"'
    assert card.data.widget == [{"text": "zkz | [x](y) -- \n- a: b", "output": {"url": "images/0.png"}}]
    assert str(job_dir.parent) not in files["README.md"].decode()

    # Once more: nothing changes, and no commit is made.
    commits = sum("/commit/" in each for each in hub.requests)
    again = Published.model_validate_json(publish(job_dir, "--public")[1])
    assert again.is_unchanged
    assert again.is_private, "a repository that is there stays as private as it is"
    assert sum("/commit/" in each for each in hub.requests) == commits
    assert TOKEN not in "".join((out, err, *(path.read_text(errors="replace") for path in _written(job_dir))))


def _written(job_dir: Path) -> list[Path]:
    return [path for path in job_dir.parent.rglob("*") if path.is_file()]


def test_an_upload_that_is_killed_goes_on_where_it_was(hub: Hub, job_dir: Path, publish: Publish) -> None:
    def kill(objects: int) -> None:
        if objects == 1:
            process.kill()

    gate = hub.before_object
    hub.before_object = kill
    with start(hub, job_dir) as process:
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert hub.files(REPOSITORY) == {}, "no half of a model is shown"
    hub.before_object = gate
    sent = sum(each.startswith("PUT") for each in hub.requests)
    assert publish(job_dir)[0] == EXIT_FINISHED
    assert len(hub.files(REPOSITORY)) == 4
    again = sum(each.startswith("PUT") for each in hub.requests) - sent
    assert again <= 1, "what the hub has is not sent again"


@pytest.mark.parametrize(
    ("namespace", "token", "sentence"),
    [
        ("ana", "hf_wrong", "does not accept the token"),
        ("ben", TOKEN, "may not write to ana/fox-12"),
        ("ana", "", "Set HF_TOKEN"),
    ],
)
def test_a_refusal_is_one_sentence(
    hub: Hub, job_dir: Path, publish: Publish, namespace: str, token: str, sentence: str
) -> None:
    hub.namespace = namespace
    status, out, err = publish(job_dir, token=token)
    assert (status, out) == (EXIT_REFUSED, "")
    assert sentence in err
    assert "Traceback" not in err


def test_a_job_without_files_is_refused(hub: Hub, publish: Publish, tmp_path: Path) -> None:
    assert publish(tmp_path)[0] == EXIT_REFUSED
    assert hub.requests == []


def test_names_are_those_that_the_hub_accepts() -> None:
    assert repository_of("ana", "fox", 12) == "ana/fox-12"
    assert repository_of("ana", "..Füchse -- & co..", 3) == "ana/F-chse-co-3"
    assert repository_of("ana", "狐", 3) == "ana/model-3"


def test_a_license_is_only_claimed_of_the_released_bases() -> None:
    assert license_of("stable-diffusion-v1-5/stable-diffusion-v1-5") == {"license": "creativeml-openrail-m"}
    assert license_of("stabilityai/stable-diffusion-3.5-medium")["license_name"] == "stabilityai-ai-community"
    assert license_of("somebody/stable-diffusion-xl-base-remix") == {"license": "unknown"}
    assert license_of(None) == {"license": "unknown"}
    classifier = make_spec(
        {"name": "c", "dataset": "/x", "task": "classification", "base": {"source": "a/b"}, "method": {"kind": "full"}}
    )
    assert "image-classification" in front_matter(classifier, [])
