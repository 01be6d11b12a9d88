"""Translation of user-facing text, and numbers, durations, sizes and lists as people read them.

Every sentence for a user goes through `_` or `ngettext`, with named placeholders:

    _("#{job} is queued.", job=job.id)
    ngettext("{n} image", "{n} images", len(images))

Babel extracts them, from Python and from the templates (`make messages`).
"""

from __future__ import annotations

import gettext
import os
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean

_LOCALE_DIR = Path(__file__).parent / "locale"
_catalog = gettext.translation("darkroom", _LOCALE_DIR, [os.environ.get("DARKROOM_LANGUAGE", "en")], fallback=True)


def _(message: str, /, **values: object) -> str:
    """The translation of `message`; `{name}` placeholders are filled if values are given."""
    translated = _catalog.gettext(message)
    return translated.format_map(values) if values else translated


def ngettext(one: str, many: str, n: int, /, **values: object) -> str:
    """The translation of `one` or `many`, whichever `n` asks for; `{n}` is the number with thousands separators."""
    return _catalog.ngettext(one, many, n).format_map({"n": f"{n:,}", **values})


def duration(seconds: float) -> str:
    """`42 s`, `4 min 51 s`, `48 min`, `2 h 05 min`: to about two digits."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def rough_duration(seconds: float) -> str:
    """An estimate, in whole minutes from one minute on: `40 s`, `5 min`, `2 h 05 min`."""
    return duration(seconds) if seconds < 59.5 else duration(round(seconds / 60) * 60).removesuffix(" 00 s")


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
    return _("{items} and {last}", items=", ".join(items[:-1]), last=items[-1])


def percent(share: float) -> str:
    """A share with one decimal: `61.2 %`."""
    return f"{100 * share:.1f} %"


def change(ratio: float) -> str:
    """A ratio as a signed change: `+1.2 %`, `−0.4 %`, `±0.0 %`."""
    value = round(100 * (ratio - 1), 1)
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    return f"{sign}{abs(value):.1f} %"


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
    ends = len(ratios) // 3
    if not ends:
        return ""
    levels = {
        _("layout"): fmean(ratios[-ends:]),
        _("shapes"): fmean(ratios[ends:-ends]),
        _("detail"): fmean(ratios[:ends]),
    }
    return ", ".join(level_change(name, ratio) for name, ratio in levels.items())


def level_change(name: str, ratio: float) -> str:
    """`detail 46 % better`."""
    share = share_off(ratio)
    if share == "0.0":
        return _("{level} as good", level=name)
    if ratio < 1:
        return _("{level} {share} % better", level=name, share=share)
    return _("{level} {share} % worse", level=name, share=share)


def share_off(ratio: float) -> str:
    """How far a ratio is from 1 in percent, with a decimal below 10: `51`, `2.3`."""
    percent_off = abs(100 * (ratio - 1))
    return f"{percent_off:.0f}" if percent_off >= 9.95 else f"{percent_off:.1f}"
