"""Where a dataset that a spec names lies on this machine: a spec is the same wherever its job runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

#: Environment variable: a JSON object, folder in the spec → folder here. Whoever starts a trainer elsewhere sets it.
DATASETS_ENV = "DARKROOM_DATASETS"

_places: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


def folder_of(dataset: str) -> Path:
    """The folder of a dataset of a spec; the one that the spec names, unless the environment knows another."""
    return Path(read_places(os.environ).get(dataset, dataset))


def read_places(environ: Mapping[str, str]) -> dict[str, str]:
    """Folder in the spec → folder here; empty where all are where the spec says."""
    return _places.validate_json(environ.get(DATASETS_ENV) or "{}")


def write_places(places: Mapping[str, str]) -> dict[str, str]:
    """The environment that tells a trainer of them."""
    return {DATASETS_ENV: _places.dump_json(dict(places)).decode()}
