"""What makes two jobs the same work: their data by content, and all of their settings but the name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyOrder


def fingerprint(
    spec: Spec, dataset_digest: str, mix_digests: Sequence[str] = (), *, study: StudyOrder | None = None
) -> str:
    """SHA-256 of the settings with the datasets' digests (`DatasetReport.digest`) in place of their folders.

    Two jobs of one fingerprint make the same weights; the seed counts. `mix_digests` are of the parts of `spec.mix`, in
    their order. `study`: what is asked of these settings, of a study; a training of the same settings is another job.
    """
    # The name is no setting, and the preset is only where the settings came from.
    settings = json.loads(spec.model_dump_json(exclude={"name", "preset"}))
    settings["dataset"] = dataset_digest
    for part, digest in zip(settings["mix"], mix_digests, strict=True):
        part["dataset"] = digest
    if study is not None:
        settings["study"] = study.model_dump(mode="json")
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
