"""Random bases of each family, and adapters on them, written once per test run; tests do not change them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from tests.trainer.conftest import SharedFolder
from tests.trainer.models.random_adapters import ExportedAdapter, Exports, Load, export_adapter, method_of
from tests.trainer.random_base import make_random_base, make_random_sd2, make_random_sd3, make_random_sdxl
from trainer.models.base import LoadedBase, load_base
from trainer.protocol.settings import Base, MethodKind, Objective

#: Returns the folder of a random base: "sd1", "sd2", "sdxl", "sd3" or "sd3-t5".
BaseFolder: TypeAlias = Callable[[str], Path]

_MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd1": make_random_base,
    "sd2": make_random_sd2,
    "sdxl": make_random_sdxl,
    "sd3": make_random_sd3,
    "sd3-t5": lambda folder: make_random_sd3(folder, has_t5=True),
}


@pytest.fixture(scope="session")
def base_folder(shared_folder: SharedFolder) -> BaseFolder:
    return lambda family: shared_folder(family, _MAKERS[family])


def _empty_tables(base: LoadedBase) -> dict[int, Any]:
    """Copies of the empty tables of hooks, ten in each module, on which `deepcopy` spends half of its time."""
    return {
        id(value): type(value)()
        for part in (base.denoiser, *base.text_encoders.values())
        for module in part.modules()
        for value in vars(module).values()
        if type(value) in {dict, set, OrderedDict} and not value
    }


@pytest.fixture(scope="session")
def load(base_folder: BaseFolder) -> Load:
    @cache
    def original(family: str, clip_skip: int, **objective: Any) -> LoadedBase:
        return load_base(Base(source=str(base_folder(family)), clip_skip=clip_skip), Objective(**objective))

    def copied(family: str, clip_skip: int = 1, **objective: Any) -> LoadedBase:
        """Copy what methods change, in a tenth of the time of loading; share the rest."""
        base = original(family, clip_skip, **objective)
        shared = {id(each): each for each in (base.vae, base.noising, base.sampler)}
        return deepcopy(base, {**shared, **_empty_tables(base)})

    return copied


@pytest.fixture(scope="session")
def exported(load: Load, shared_folder: SharedFolder) -> Exports:
    """Adapters with a dropout, which must not be in effect."""

    def read(family: str, kind: MethodKind) -> ExportedAdapter:
        def make(folder: Path) -> None:
            torch.save(export_adapter(load, family, method_of(kind, dropout=0.3), folder), folder / "adapter.pt")

        path = shared_folder(f"{family}-{kind}", make) / "adapter.pt"
        adapter: ExportedAdapter = torch.load(path, weights_only=False)
        return adapter

    return read
