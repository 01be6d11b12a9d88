"""Translation of user-facing text, and numbers, durations, sizes and lists as people read them.

Every sentence for a user goes through `_` or `ngettext`, with named placeholders:

    _("#{job} is queued.", job=job.id)
    ngettext("{n} image", "{n} images", len(images))

They translate when they are called, so never at import time: a table of texts is a function, and what Discord
translates itself (descriptions of commands) is only marked, by `N_`. Babel extracts all of them, from Python and from
the templates; `make messages` brings the catalogs up to date.
"""

from __future__ import annotations

import gettext
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from io import BytesIO
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TypeVar

LOCALE_DIR = Path(__file__).parent / "locale"
ENGLISH = "en"
#: What a user can choose, in its own words. English is in the source, the others have a catalog each.
LANGUAGES = {ENGLISH: "English", "zh_CN": "简体中文"}
#: The language of a process: what its parent sets, in the environment.
LANGUAGE_VARIABLE = "DARKROOM_LANGUAGE"

T = TypeVar("T")

#: They change the direction of all text that follows, even outside of the name that holds them.
_DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_PROCESS_LANGUAGE = os.environ.get(LANGUAGE_VARIABLE, ENGLISH)
_language: ContextVar[str] = ContextVar("language", default=_PROCESS_LANGUAGE)


def _(message: str, /, **values: object) -> str:
    """The translation of `message`; `{name}` placeholders are filled if values are given."""
    translated = catalog(_language.get()).gettext(message)
    return translated.format_map(values) if values else translated


def ngettext(one: str, many: str, n: int, /, **values: object) -> str:
    """The translation of `one` or `many`, whichever `n` asks for; `{n}` is the number with thousands separators."""
    return catalog(_language.get()).ngettext(one, many, n).format_map({"n": f"{n:,}", **values})


def N_(message: str) -> str:  # noqa: N802 - gettext's name for it
    """Return `message` as it is; it is only marked for the catalogs, and translated where it is shown."""
    return message


def translate(message: str) -> str:
    """The translation of a message that `N_` marked."""
    return catalog(_language.get()).gettext(message)


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Translate into `language` in this context, and in tasks and threads that begin in it."""
    token = _language.set(language)
    try:
        yield
    finally:
        _language.reset(token)


def speak(language: str) -> None:
    """Translate into `language` for the rest of this task."""
    _language.set(language)


def current_language() -> str:
    """The language that `_` translates into now."""
    return _language.get()


@cache
def catalog(language: str) -> gettext.NullTranslations:
    """Return the messages of a language; English and unknown ones have none, and stay as they are in the source."""
    path = LOCALE_DIR / language / "LC_MESSAGES" / "darkroom.po"
    if language not in LANGUAGES or not path.exists():
        return gettext.NullTranslations()
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    compiled = BytesIO()
    with path.open("rb") as file:
        write_mo(compiled, read_po(file, locale=language))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def duration(seconds: float) -> str:
    """`42 s`, `4 min 51 s`, `48 min`, `2 h 05 min`: to about two digits."""
    whole = max(0, round(seconds))
    if whole < 60:
        return _("{s} s", s=whole)
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return _("{min} min {s} s", min=minutes, s=f"{rest:02}")
    hours, minutes = divmod(round(whole / 60), 60)
    return _("{h} h {min} min", h=hours, min=f"{minutes:02}") if hours else _("{min} min", min=minutes)


def rough_duration(seconds: float) -> str:
    """An estimate, in whole minutes from one minute on: `40 s`, `5 min`, `2 h 05 min`."""
    minutes = round(seconds / 60)
    return (
        duration(seconds) if seconds < 59.5 else _("{min} min", min=minutes) if minutes < 60 else duration(60 * minutes)
    )


def size(count: float) -> str:
    """Bytes in a readable unit: `143 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def listed(words: Iterable[str], *, most: int | None = None) -> str:
    """`a`, `a and b`, `a, b and c`; of more than `most` words: `a, b and 7 more`."""
    items = list(words)
    if most is not None and len(items) > most + 1:
        items = [*items[:most], _("{n} more", n=len(items) - most)]
    if len(items) < 2:
        return "".join(items)
    return _("{items} and {last}", items=_(", ").join(items[:-1]), last=items[-1])


def percent(share: float, digits: int = 0) -> str:
    """A share: `61 %`, or with decimals `61.2 %`."""
    value = round(100 * share, digits) or 0.0  # Never −0.
    return _("{share} %", share=f"{value:.{digits}f}".replace("-", "−"))


def change(ratio: float) -> str:
    """A ratio as a signed change: `+1.2 %`, `−0.4 %`, `±0.0 %`."""
    value = round(100 * (ratio - 1), 1)
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    return _("{share} %", share=f"{sign}{abs(value):.1f}")


def verdict(ratio: float, low: float | None = None, high: float | None = None) -> str:
    """A loss beside the base model's, as people read it: `51 % better than the base model (29 to 66 %)`.

    Args:
        ratio: The loss over the base model's.
        low, high: The 95 % interval of `ratio`, if there is one.
    """
    if not isfinite(ratio):
        return _("not comparable with the base model: its loss is no number")
    share = share_off(ratio)
    if share == "0.0":
        text = _("as good as the base model")
    elif ratio < 1:
        text = _("{share} % better than the base model", share=share)
    else:
        text = _("{share} % worse than the base model", share=share)
    if low is None or high is None:
        return text
    worst, best = share_off(high), share_off(low)
    if high < 1:
        return _("{text} ({worst} to {best} %)", text=text, worst=worst, best=best)
    if low > 1:
        return _("{text} ({best} to {worst} %)", text=text, worst=worst, best=best)
    return _("{text} (by chance anything from {worst} % worse to {best} % better)", text=text, worst=worst, best=best)


def noise_levels(ratios: Sequence[float]) -> str:
    """What became better and what worse: `layout 12 % worse, shapes 20 % better, detail 46 % better`.

    Much noise leaves only the layout of an image to be predicted, little noise its detail (Choi et al. 2022,
    arXiv:2204.00227).

    Args:
        ratios: The loss over the base model's in each band of timesteps, from little noise to much. Fewer than three
            say nothing.
    """
    return _(", ").join(level_change(name, fmean(level)) for name, level in by_level(ratios).items())


def by_level(bands: Sequence[T]) -> dict[str, Sequence[T]]:
    """Divide bands, from little noise to much, into layout, shapes and detail; into nothing if fewer than three."""
    ends = len(bands) // 3
    if not ends:
        return {}
    return {_("layout"): bands[-ends:], _("shapes"): bands[ends:-ends], _("detail"): bands[:ends]}


def level_change(name: str, ratio: float) -> str:
    """`detail 46 % better`."""
    share = share_off(ratio)
    if share == "0.0":
        return _("{level} as good", level=name)
    if ratio < 1:
        return _("{level} {share} % better", level=name, share=share)
    return _("{level} {share} % worse", level=name, share=share)


def gain(ratio: float) -> str:
    """A loss beside the base model's, where it is clear what it is compared with: `51 % better`."""
    if not isfinite(ratio):
        return _("not comparable")
    share = share_off(ratio)
    if share == "0.0":
        return _("no better")
    return _("{share} % better", share=share) if ratio < 1 else _("{share} % worse", share=share)


def share_off(ratio: float) -> str:
    """How far a ratio is from 1 in percent, with a decimal below 10: `51`, `2.3`."""
    percent_off = abs(100 * (ratio - 1))
    return f"{percent_off:.0f}" if percent_off >= 9.95 else f"{percent_off:.1f}"


def sanitize(text: object) -> str:
    """Return any text as one line without characters that affect the text around it."""
    line = " ".join(str(text).split())
    return "".join("\ufffd" if c in _DIRECTION_MARKS or unicodedata.category(c) in {"Cc", "Cs"} else c for c in line)
