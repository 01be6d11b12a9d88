"""File names from strangers: their encoding, whether they are safe, what is clutter, and their natural order."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "$recycle.bin"}
_DIGITS = re.compile(r"(\d+)")


def decode_name(raw: bytes) -> str:
    """The name that these bytes most likely spell: UTF-8, then GB18030 (Chinese Windows), then cp437 (DOS).

    Zip programs that set no UTF-8 flag write whatever their system's code page is.
    """
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("cp437")


def printable(name: str) -> str:
    """The name with everything escaped that a terminal, a log or JSON would stumble over."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name)


def unsafe_reason(name: str) -> str | None:
    """Why this archive name may not be used, or None. Backslashes count as slashes, as Windows reads them."""
    path = name.replace("\\", "/")
    if not path.strip("/. "):
        return "its name is empty"
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in path):
        return "its name holds control characters"
    if path.startswith("/"):
        return "its name is an absolute path"
    if re.match(r"[A-Za-z]:", path):
        return "its name holds a drive letter"
    if ".." in (part.rstrip(" ") for part in path.split("/")):
        return "its name climbs out of its folder"
    if len(path) > 1024:
        return "its name is longer than 1024 characters"
    return None


def tidy(name: str) -> str:
    """A safe archive name with forward slashes and no empty or `.` parts."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def is_clutter(name: str) -> bool:
    """True for what operating systems leave behind: `__MACOSX`, `Thumbs.db`, dotfiles."""
    parts = name.replace("\\", "/").split("/")
    return any(part.lower() in _CLUTTER or (part.startswith(".") and part.strip(".") != "") for part in parts)


def same_name_key(name: str) -> str:
    """Equal for names that some file system takes for one: case and Unicode composition do not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which `img2` comes before `img10`."""
    parts = _DIGITS.split(name.casefold())
    # Digits beyond 18 are compared as text: int() of a hostile name of a million digits takes minutes.
    keys = ((0, int(part), part) if part.isdecimal() and len(part) <= 18 else (1, 0, part) for part in parts if part)
    # The name itself comes last: two names never tie.
    return (*keys, (2, 0, name))


def stem_key(name: str) -> str:
    """Folder and stem of a name, equal for a picture and its caption."""
    return same_name_key(str(PurePosixPath(name).with_suffix("")))
