"""The base of all pydantic models here: immutable, strict about unknown fields; and the type of paths in them.

Values of which a dataset has thousands are pydantic dataclasses with slots instead: a model takes 1 to 2 KB more.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

#: Refuses unknown fields, and numbers that are not finite.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class Frozen(BaseModel):
    """Immutable; refuses unknown fields, and numbers that are not finite."""

    model_config = STRICT | ConfigDict(frozen=True)


def _stays_inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/") or not path.isprintable():
        raise ValueError("it does not stay in its folder, or has control characters")
    return path


#: A file or folder below the folder that the value lies in. The process that wrote it may be compromised: open it by
#: `exchange.files.locate`, which follows no link out of the folder.
RelativePath = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_stays_inside)]
