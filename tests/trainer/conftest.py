"""A random base, a prepared dataset of drawn images, and job folders made of both."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from PIL import ImageDraw

from tests.trainer.fork_server import QUICK_CHARTS_VARIABLE
from trainer.exchange.job_dir import write_spec
from trainer.protocol.presets import spec_from_preset

MakeJob = Callable[..., Path]
#: Returns the folder of a name, made by the function if it is not there yet.
SharedFolder: TypeAlias = Callable[[str, Callable[[Path], object]], Path]

_COLORS = ("red", "green", "blue", "orange", "purple", "teal", "brown", "pink", "black", "gold", "navy", "olive")


def draw_images(folder: Path, count: int = 12) -> Path:
    """Draw wide and square images, each with a caption."""
    from tests.trainer.dataset.image_files import noise

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        color = _COLORS[index % len(_COLORS)]
        size = (150, 96) if index % 3 == 0 else (110, 110)
        # Fine enough that no two images share a layout: comparing look-alikes takes most of a preparation's time.
        image = noise(index, *size)
        corner = 10 + 3 * index
        ImageDraw.Draw(image).ellipse((corner, corner, corner + 40, corner + 30 + index), fill=color)
        image.save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"a {color} egg", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> SharedFolder:
    """Make folders once for all workers of a test run: whichever needs one first makes it. Tests do not change them."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    root.mkdir(exist_ok=True)

    def shared(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                # What failed half-way is made again.
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return shared


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, shared_folder: SharedFolder) -> Path:
    """A prepared dataset of 12 images; trainings write their caches into it."""
    from trainer.dataset.preparing.prepare import prepare

    made = shared_folder(
        "dataset", lambda folder: prepare([draw_images(folder / "images")], folder / "prepared", resolutions=(64,))
    )
    return Path(shutil.copytree(made / "prepared", tmp_path_factory.mktemp("dataset") / "prepared"))


@pytest.fixture(scope="session")
def random_base(shared_folder: SharedFolder) -> Path:
    from tests.trainer.random_base import make_random_base

    return shared_folder("sd1", make_random_base)


@pytest.fixture(scope="module")
def quick_charts() -> Iterator[None]:
    """Draw no charts, here and in trainers that are forks."""
    from matplotlib.figure import Figure

    from tests.trainer.quick_charts import write_blank

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", write_blank)
        patch.setenv(QUICK_CHARTS_VARIABLE, "1")
        yield


SMALL: dict[str, Any] = {
    "training": {"epochs": 3, "learning_rate": 5e-3, "batch_size": 4, "micro_batch_size": 2, "repeats": 2},
    "method": {"rank": 4, "alpha": 2.0, "targets": "all", "text_encoder": True, "dropout": 0.1},
    "validation": {"timesteps": 2, "draws": 1, "train_images": 2},
    "samples": {"steps": 1, "prompts": ["a red egg", "a blue egg"], "unrelated_prompts": [], "every_epochs": 1},
    "exports": {"every_epochs": None},
}
#: For `method`: with adapters on few layers a training takes half as long.
FEW_LAYERS: dict[str, Any] = {"targets": "attention", "text_encoder": False}


def job_maker(dataset: Path, random_base: Path, folder: Path) -> MakeJob:
    """Return a function that writes job folders; its keywords are groups of settings that override SMALL."""

    def make(
        name: str = "job", base: str | None = None, base_settings: dict[str, Any] | None = None, **changes: Any
    ) -> Path:
        if base_settings is not None:
            changes["base"] = base_settings
        settings = {
            group: changes[group]
            if isinstance(changes.get(group), list)
            else {**SMALL.get(group, {}), **changes.get(group, {})}
            for group in {*SMALL, *changes}
        }
        spec = spec_from_preset("lora", dataset=str(dataset), base=base or str(random_base), changes=settings)
        write_spec(folder / name, spec)
        return folder / name

    return make


@pytest.fixture
def make_job(dataset: Path, random_base: Path, tmp_path: Path) -> MakeJob:
    """A job folder on the random base."""
    return job_maker(dataset, random_base, tmp_path)
