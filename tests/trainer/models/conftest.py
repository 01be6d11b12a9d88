"""Random bases of each family, written once per test run; tests do not change them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.trainer.models.random_adapters import Load
from tests.trainer.random_base import make_random_base, make_random_sd2, make_random_sd3, make_random_sdxl
from trainer.models.base import LoadedBase, load_base
from trainer.protocol.settings import Base

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
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> BaseFolder:
    root = tmp_path_factory.mktemp("families")
    return cache(lambda family: _MAKERS[family](root / family))


@pytest.fixture(scope="session")
def load(base_folder: BaseFolder) -> Load:
    original = cache(lambda family: load_base(Base(source=str(base_folder(family)))))
    return lambda family: _copy(original(family))


def _copy(base: LoadedBase) -> LoadedBase:
    """Copy what methods change, in a fifth of the time of loading; share the rest."""
    shared = (base.vae, base.noising, base.sampler)
    return deepcopy(base, {id(each): each for each in shared})
