"""Sentences about the ends of attempts."""

from __future__ import annotations

from pathlib import Path

from bot.queue import EndReason, EndReasonKind
from bot.queue.store.history import AuditReason
from bot.ui.end_reasons import audit_reason_text, end_reason_text
from tests.golden import check_golden

GOLDEN = Path(__file__).parent / "golden" / "end_reasons.txt"
_ATTEMPT = {"attempt": 1, "max_attempts": 3, "epoch": 3, "kept_epoch": 2, "is_retried": True}


def reason(kind: EndReasonKind, **changes: object) -> EndReason:
    return EndReason.model_validate({"kind": kind, **_ATTEMPT, **changes})


def test_every_end_has_a_sentence() -> None:
    failed, hung = EndReasonKind.TRAINER_FAILED, EndReasonKind.NO_PROGRESS
    reasons = {
        "died": reason(EndReasonKind.PROCESS_DIED),
        "died before the first step": reason(EndReasonKind.PROCESS_DIED, epoch=0, kept_epoch=0),
        "died for the last time": reason(EndReasonKind.PROCESS_DIED, attempt=3, is_retried=False),
        "died in its only attempt": reason(
            EndReasonKind.PROCESS_DIED, max_attempts=1, is_retried=False, epoch=0, kept_epoch=0
        ),
        "node lost": reason(EndReasonKind.NODE_LOST, is_counted=False, epoch=2),
        "no heartbeat": reason(EndReasonKind.NO_HEARTBEAT, stalled_for_s=600.0),
        "hung": reason(hung, stalled_for_s=3600.0),
        "hung for the last time": reason(hung, stalled_for_s=3600.0, attempt=3, is_retried=False),
        "not started": reason(
            EndReasonKind.LAUNCH_FAILED, message="The trainer could not be started (python: No such file).", epoch=0,
            kept_epoch=0,
        ),
        "out of memory": reason(failed, message="The GPU ran out of memory.", micro_batch=4),
        "out of memory, one image": reason(failed, message="The GPU ran out of memory.", micro_batch=1),
        "bug": reason(failed, message="An error: KeyError.", is_only_retry=True),
        "device lost": reason(failed, message="The GPU was lost."),
        "stopped externally": reason(EndReasonKind.STOPPED_EXTERNALLY, is_counted=False),
        "nothing to keep": EndReason(kind=EndReasonKind.NOTHING_TO_KEEP),
        "study": EndReason(kind=EndReasonKind.STUDY, message="Rank 16 is the best."),
    }  # fmt: skip
    check_golden(GOLDEN, "\n".join(f"{name}: {end_reason_text(each)}" for name, each in reasons.items()))


def test_every_reason_in_the_audit_has_a_phrase_and_a_users_own_words_stay() -> None:
    for kind in (*AuditReason, *EndReasonKind):
        assert audit_reason_text(kind) != kind
        assert audit_reason_text(str(kind)) == audit_reason_text(kind)
    assert audit_reason_text("too slow") == "too slow"
