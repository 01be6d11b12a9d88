"""The children of a study that somebody else runs: what each has told, and which must run still; starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainer.protocol.events import Failed, Finished
from trainer.protocol.study import ChildEnd, GivenUp
from trainer.studies.children import End, Goal, Outcome
from trainer.studies.stories import Story, read_story


class Replay:
    """Stands in for `Children`: the outcome of each goal as its folder tells it now.

    A last word `failed` is not the end of a child: whoever runs it may try again, with less in memory at once, say. It
    has failed once it is given up.
    """

    def __init__(self, ended: Iterable[ChildEnd] = ()) -> None:
        self._ended = {one.name: one for one in ended}
        #: Those of the last `run` that must run still.
        self.open: tuple[Goal, ...] = ()

    def given_up(self, goals: Sequence[Goal]) -> dict[str, Outcome]:
        """Those that failed for good, by their names."""
        outcomes = {goal.name: self._outcome(goal) for goal in goals}
        return {name: outcome for name, outcome in outcomes.items() if outcome.end is End.FAILED}

    def run(self, goals: Sequence[Goal]) -> dict[str, Outcome]:
        """The outcome of each goal, by its name; OPEN where it must run still."""
        outcomes = {goal.name: self._outcome(goal) for goal in goals}
        self.open = tuple(goal for goal in goals if outcomes[goal.name].end is End.OPEN)
        return outcomes

    def _outcome(self, goal: Goal) -> Outcome:
        story = read_story(goal.job_dir)
        if isinstance(story.last_word, Finished):
            return Outcome(end=End.FINISHED, story=story)
        given_up = self._ended.get(goal.name)
        if given_up is not None and given_up.end is GivenUp.FAILED:
            return Outcome(end=End.FAILED, story=story, reason=given_up.reason or _last_words(story))
        if goal.until_epoch is not None and story.last_epoch >= goal.until_epoch:
            return Outcome(end=End.REACHED, story=story)
        return Outcome(end=End.OPEN if given_up is None else End.HALTED, story=story)


def _last_words(story: Story) -> str:
    match story.last_word:
        case Failed() as failed:
            return f"{failed.message} {failed.hint}"
        case _:
            return "It ended without a word."
