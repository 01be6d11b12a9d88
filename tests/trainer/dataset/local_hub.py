"""A local Hugging Face hub with one dataset, by its HTTP API, for the real `huggingface_hub`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.trainer.dataset.local_server import Answer, as_json, body, serving

COMMIT = "c0ffee" + "0" * 34


def hub_answers(repository: str, files: Mapping[str, bytes], **info: Any) -> dict[str, Answer]:
    """The answers about a dataset: its facts, by name and by commit, and its files.

    Args:
        repository: `owner/name`.
        files: Their bytes.
        info: Added to its facts, or in place of them.
    """
    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    facts = as_json({"id": repository, "sha": COMMIT, "private": False, "gated": False, "siblings": siblings, **info})
    path = f"/api/datasets/{repository}"
    answers = {path: facts, f"{path}/revision/{COMMIT}": facts}
    for name, data in files.items():
        headers = {"X_Repo_Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        answers[f"/datasets/{repository}/resolve/{COMMIT}/{name}"] = body(data, 200, **headers)
    return answers


@contextmanager
def local_hub(repository: str, files: Mapping[str, bytes], **info: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of the hub, and the paths that were requested so far."""
    with serving(hub_answers(repository, files, **info)) as (address, asked):
        yield address, asked
