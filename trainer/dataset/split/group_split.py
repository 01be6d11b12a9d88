"""Who trains, who validates, who tests: whole groups, by class, the same each time, and honest about tiny sets."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.protocol.report import Split

#: Groups that a class needs for a share of its own in each split (0.15 * 7 rounds to 1).
MIN_GROUPS_PER_CLASS = 7


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What share of the pictures validates and tests; the rest trains."""

    validation: float = 0.15
    test: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.validation < 1 and 0 <= self.test < 1 and self.validation + self.test < 1):
            raise ValueError("validation and test shares must leave something to train on")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One picture, as the split sees it."""

    #: SHA-256 of its pixels: what its place in the order hangs on, so that names and other pictures do not.
    content: str
    group: Hashable
    class_name: str = ""


@dataclass(kw_only=True)
class _Group:
    """Pictures that must stay together."""

    rank: str
    members: list[int] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)
    known: Counter[Split] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def class_name(self) -> str:
        """The class of most of its pictures."""
        return min(self.classes, key=lambda name: (-self.classes[name], name))


def split(members: Sequence[Member], shares: Shares, known: Mapping[str, Split] | None = None) -> list[Split]:
    """A split for each picture; pictures of one group share theirs.

    Groups are ranked by a hash of seed and content. Test takes them from one end and validation from the other, so a
    picture that is added moves at most the groups at the borders. `known` (pixel hash to split, of an earlier
    preparation) holds even those in place.

    Fewer than 3 groups all train. From 3 on, validation and test get at least one group each if their share is above 0.
    """
    groups = _groups(members, shares.seed, known or {})
    chosen: dict[int, Split] = {}
    if len(groups) >= 3:
        for group in groups:
            if group.known:
                chosen[id(group)] = max(group.known, key=lambda side: (group.known[side], side == Split.TRAIN))
        _fill(groups, Split.TEST, shares.test, chosen)
        _fill(groups, Split.VALIDATION, shares.validation, chosen)
    result = [Split.TRAIN] * len(members)
    for group in groups:
        for index in group.members:
            result[index] = chosen.get(id(group), Split.TRAIN)
    return result


def _groups(members: Sequence[Member], seed: int, known: Mapping[str, Split]) -> list[_Group]:
    """Groups by rank: the lowest hash among their members."""
    groups: dict[Hashable, _Group] = {}
    for index, member in enumerate(members):
        rank = hashlib.sha256(f"{seed}:{member.content}".encode()).hexdigest()
        group = groups.setdefault(member.group, _Group(rank=rank))
        group.rank = min(group.rank, rank)
        group.members.append(index)
        group.classes[member.class_name] += 1
        if member.content in known:
            group.known[known[member.content]] += 1
    return sorted(groups.values(), key=lambda group: group.rank)


def _fill(groups: list[_Group], side: Split, share: float, chosen: dict[int, Split]) -> None:
    """Choose groups for one side, class by class; what a class leaves over is carried to the next."""
    if share == 0:
        return
    wanted = 0.0
    have = sum(group.size for group in groups if chosen.get(id(group)) is side)
    #: One group at least must train.
    to_spare = sum(chosen.get(id(group), Split.TRAIN) is Split.TRAIN for group in groups) - 1
    for stratum in _strata(groups):
        wanted += share * sum(group.size for group in stratum)
        for group in stratum if side is Split.TEST else reversed(stratum):
            if id(group) in chosen or to_spare <= 0:
                continue
            # Halves go to validation: early stopping leans on it in each epoch, the test is looked at once.
            gain = wanted - have - group.size / 2
            if gain > 1e-9 or (gain > -1e-9 and side is Split.VALIDATION):
                chosen[id(group)] = side
                have += group.size
                to_spare -= 1
    free = [group for group in groups if id(group) not in chosen]
    if not have and to_spare > 0 and free:
        # Each side must hold something: the smallest group does least harm.
        chosen[id(min(free, key=lambda group: (group.size, group.rank)))] = side


def _strata(groups: list[_Group]) -> list[list[_Group]]:
    """Groups by class, each by rank; classes too small for a share of their own are pooled, and come last."""
    by_class: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        by_class[group.class_name].append(group)
    large = [by_class[name] for name in sorted(by_class) if len(by_class[name]) >= MIN_GROUPS_PER_CLASS]
    rest = [group for group in groups if len(by_class[group.class_name]) < MIN_GROUPS_PER_CLASS]
    return [*large, rest] if rest else large
