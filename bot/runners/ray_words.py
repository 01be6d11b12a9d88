"""What Ray itself says of an attempt that failed, put at the end of the job's trainer.log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.protocol.log_file import read_tail
from trainer.protocol.order import LOG_FILE

log = logging.getLogger(__name__)

#: Of what Ray says; it gives 20,000 characters of a job's output by itself.
_MAX_CHARS = 20_000
#: The part of an address before its host: `ftp://name:password@host`.
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|KEY|PASS", re.IGNORECASE)
#: A shorter value is a switch (`HF_TOKEN_IMPLICIT=1`), and its characters stand everywhere.
_SHORTEST_SECRET = 6


def keep_words(job_dir: Path, submission_id: str, words: str) -> None:
    """Append them under the attempt's name, unless they are there: whoever asks twice after a job adds nothing.

    A log that cannot be written is said in ours, and is no reason to ask for the job again and again.
    """
    title = f"--- Ray about {submission_id} ---"
    path = job_dir / LOG_FILE
    try:
        if title.encode() in read_tail(path):
            return
        with path.open("ab") as file:
            file.write(f"{title}\n{words.strip()[-_MAX_CHARS:]}\n".encode())
    except OSError as error:
        log.warning("%s: what Ray says of it could not be kept (%s)", path, error)


def without_secrets(text: str, env: Mapping[str, str]) -> str:
    """The text without passwords in addresses and without the secrets of a trainer's environment.

    Ray repeats command lines and environments where it explains why a job could not begin.
    """
    text = _USER_INFO.sub("***@", text)
    for secret in sorted(_secrets(env), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(env: Mapping[str, str]) -> Iterator[str]:
    for name, value in env.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name):
            yield value
