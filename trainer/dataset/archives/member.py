"""What every archive gives: members with a safe name and a way to read them, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from trainer.dataset.limits import Limits
from trainer.dataset.names import is_clutter, printable, same_name_key, tidy, unsafe_reason
from trainer.protocol.report import RefusalKind


class RefusedError(Exception):
    """An entry or an archive that is not opened; `reason` is a clause for a sentence."""

    def __init__(self, kind: RefusalKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Member:
    """One regular file of an archive, not read yet; `refusal` if it never will be."""

    name: str
    refusal: RefusedError | None
    _read: Callable[[], bytes]

    def read(self) -> bytes:
        """The member's bytes; members may be read in any order.

        Raises:
            RefusedError: the member is damaged, or larger than it claims.
        """
        if self.refusal is not None:
            raise self.refusal
        return self._read()


class Archive(Protocol):
    """An open archive that passed every check that its list of entries allows."""

    members: tuple[Member, ...]

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An entry as its archive's directory has it."""

    #: As its author wrote it, unsafe or not.
    name: str
    is_folder: bool
    #: What is wrong with it besides its name.
    refusal: RefusedError | None = None
    read: Callable[[], bytes]


def members_of(entries: Iterable[Listed]) -> Iterator[Member]:
    """A member for each entry but folders and clutter; a name that an earlier one has is refused."""
    seen: set[str] = set()
    for entry in entries:
        is_folder = entry.is_folder or entry.name.endswith(("/", "\\"))
        reason = unsafe_reason(entry.name)
        # `tar -C folder .` lists the folder itself.
        if is_folder and not tidy(entry.name):
            continue
        if reason is None and (is_folder or is_clutter(entry.name)):
            continue
        refusal = RefusedError(RefusalKind.UNSAFE_PATH, reason) if reason else entry.refusal
        name = printable(tidy(entry.name) if reason is None else entry.name)
        key = same_name_key(name)
        if refusal is None and key in seen:
            refusal = RefusedError(RefusalKind.COLLISION, "an earlier entry has the same name")
        seen.add(key)
        yield Member(name=name, refusal=refusal, _read=entry.read)


def damaged(error: Exception) -> RefusedError:
    """The refusal for what a library could not read."""
    return RefusedError(RefusalKind.DAMAGED, f"it is damaged ({printable(str(error))[:120] or type(error).__name__})")


def too_many(limits: Limits, count: int | None = None) -> RefusedError:
    """The refusal for an archive of `count` entries, or of more than the limit where nobody counted further."""
    held = f"{count:,} entries" if count else "more entries"
    return RefusedError(RefusalKind.TOO_MANY, f"it holds {held}; at most {limits.max_entries:,} are opened")


def check_sizes(packed_bytes: int, inflated_bytes: int, limits: Limits) -> None:
    """Hold an archive's promised sizes against the limits.

    Raises:
        RefusedError: it inflates to too much.
    """
    if inflated_bytes > limits.max_archive_bytes:
        most = limits.max_archive_bytes / 2**30
        raise RefusedError(
            RefusalKind.TOO_LARGE, f"it inflates to {inflated_bytes / 2**30:.1f} GiB; at most {most:.1f} are opened"
        )
    if inflated_bytes > limits.ratio_floor_bytes and inflated_bytes > packed_bytes * limits.max_ratio:
        ratio = inflated_bytes / max(packed_bytes, 1)
        raise RefusedError(RefusalKind.RATIO, f"it inflates to {ratio:,.0f} times its size, as a zip bomb does")


def size_refusal(size: int, limits: Limits) -> RefusedError | None:
    """Why an entry of so many bytes is not read, if so."""
    if size < 0:
        return RefusedError(RefusalKind.DAMAGED, "it claims a negative size")
    if size > limits.max_entry_bytes:
        return RefusedError(RefusalKind.TOO_LARGE, f"it inflates to {size / 2**20:.0f} MiB")
    return None


#: The two refusals that every format shares.
IS_LINK = (RefusalKind.LINK, "it is a link or a device, not a file")
IS_ENCRYPTED = (RefusalKind.ENCRYPTED, "it is encrypted")
