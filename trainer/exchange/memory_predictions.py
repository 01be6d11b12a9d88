"""Predictions of a training's memory, kept by what they depend on: each takes a trainer process 10 to 40 s."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from trainer.exchange.base_files import base_facts, version_of
from trainer.exchange.dataset_dir import read_report
from trainer.exchange.files import write_text
from trainer.protocol.settings import TINY, TaskKind
from trainer.protocol.spec import Spec

#: That CLIP reads at once.
_CHUNK_TOKENS = 75
#: Of the settings of a method those that its memory does not depend on.
_OTHER_METHOD_SETTINGS = {"dropout", "start_from", "start_sha256"}
_TRAINING_SETTINGS = {"resolution", "precision", "gradient_checkpointing", "fused_backward", "bf16_weights"}
_STAGE_SETTINGS = {"resolution", "optimizer", "optimizer_arguments"}


def is_predictable(spec: Spec, environ: Mapping[str, str] = os.environ) -> bool:
    """True if the base is on this machine, and too large for its memory to be no matter."""
    if spec.task is not TaskKind.DIFFUSION or spec.base.source == TINY:
        return False
    facts = base_facts(spec.base, environ)
    return facts is not None and bool(facts.family)


def read_prediction(folder: Path, spec: Spec, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the kept prediction of a training, bytes; None if there is none."""
    try:
        return int(_path(folder, spec, environ).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def keep_prediction(folder: Path, spec: Spec, memory: int, environ: Mapping[str, str] = os.environ) -> None:
    """Keep the prediction of a training, for all that take the same."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(_path(folder, spec, environ), f"{memory}\n")


def _path(folder: Path, spec: Spec, environ: Mapping[str, str]) -> Path:
    training = spec.training
    about: dict[str, Any] = {
        "base": spec.base.model_dump(mode="json"),
        "files": version_of(spec.base, environ),
        "method": spec.method.model_dump(mode="json", exclude=_OTHER_METHOD_SETTINGS),
        "training": training.model_dump(mode="json", include=_TRAINING_SETTINGS),
        "parts": [training.batch_size > 1, training.ema_decay is not None],
        "chunks": caption_chunks(spec),
        "stages": [stage.model_dump(mode="json", include=_STAGE_SETTINGS) for stage in spec.plan],
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    return folder / f"memory-{key}.txt"


def caption_chunks(spec: Spec) -> int:
    """Return the chunks of 75 tokens of the longest caption, with the trigger word; 1 if the datasets are not here."""
    parts = [(spec.dataset, spec.training.trigger), *((part.dataset, part.trigger) for part in spec.mix)]
    tokens = 1
    for folder, trigger in parts:
        with suppress(OSError, ValueError):
            # A letter is one token at most.
            tokens = max(tokens, _longest_caption(folder) + len(trigger))
    return ceil(min(tokens, spec.base.max_token_length) / _CHUNK_TOKENS)


@lru_cache(maxsize=256)
def _longest_caption(folder: str) -> int:
    """Return the tokens of the longest caption of a prepared dataset, whose folder never changes.

    Raises:
        OSError, ValueError: It is not there, or damaged.
    """
    captions = read_report(Path(folder)).captions
    return 0 if captions is None else captions.longest_tokens
