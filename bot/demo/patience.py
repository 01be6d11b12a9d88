"""Lets a person press buttons on a page that changes every second.

simcord refuses an action that was decided on an older revision of the page, and one that comes while the simulation
is busy. Both are right for tests; in a live demo each edit of a card makes a revision, and presses would go lost.
It also gives all pictures of a page 30 s together to be checked, one process each, and shows none that comes later:
too little beside a training that has every core.
"""

from __future__ import annotations

import asyncio
from typing import Any

from simcord.preview import _media

_PICTURES_S = 600


def be_patient(env: Any, preview: Any) -> None:
    """Make actions wait for their turn, and take them as decided on the newest revision.

    This reaches into simcord 3.2, which has no setting for it; with another simcord it does nothing, and a press that
    goes lost is pressed again.
    """
    if hasattr(_media, "WORKER_DEADLINE_SECONDS"):
        _media.WORKER_DEADLINE_SECONDS = _PICTURES_S
    act = getattr(preview, "_action", None)
    page_of = getattr(preview, "_get_page", None)
    if act is None or page_of is None or not hasattr(env, "_operation_task"):
        return

    async def patiently(context_id: Any, body: Any) -> Any:
        while env._operation_task is not None:  # noqa: ASYNC110 - simcord sets no event.
            await asyncio.sleep(0.01)
        if isinstance(body, dict) and "published_revision" in body:
            body["published_revision"] = page_of(context_id).revision
        return await act(context_id, body)

    preview._action = patiently
