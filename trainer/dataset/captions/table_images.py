"""Finds the image that each row of a caption table names."""

from __future__ import annotations

import posixpath
import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from trainer.dataset.input_files import SourceEntry, composed, has_image_name, same_name_key, stem_key

#: A folder, or None for all of them: a loose table can name images in any archive.
_Scope = int | None
#: The parts of a path.
_Parts = tuple[str, ...]

#: Flickr numbers the captions of an image: `1000.jpg#0`. Airtable has the address of an attachment behind its name.
_BEHIND_NAME = re.compile(r"#\d+$|\s\(https?://[^()]*\)$")
#: The name in a formula of a spreadsheet, `=IMAGE("cat.png")`, and in Markdown's images and code.
_WRAPPED = re.compile(
    r"""=\w{1,20}\(\s*["']([^"']+)["'].*\)|!?\[[^\[\]]*\]\(([^()]+)\)|`([^`]+)`|<img\b[^<>]*?\bsrc=["']?([^"'\s<>]+)[^<>]*>"""
)
_MAX_WRAPPED = 1024
#: Of a site that shows files, such as `cat.png?raw=true`.
_QUERY = re.compile(r"(?<=\w)\?[\w.~-]+=[^?/\\]*$")
#: Characters without a glyph that are copied with a name; Windows puts one before a path.
_UNSEEN = string.whitespace + "\u00a0\u00ad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\ufeff"
#: What Label Studio puts before the path of a file on its own machine.
_LOCAL_FILES = "/data/local-files/?d="
#: What it puts before the name of an uploaded file.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")

#: Rows with which it is tried out what their paths are relative to.
_TRIED_ROWS = 200
#: Images of one name that are looked through.
_MAX_NAMESAKES = 100


@dataclass(frozen=True, kw_only=True)
class Match:
    """The image of a row."""

    image: SourceEntry
    #: 0 if the row has its very path; more where only case or extension were ignored, or the folder was not known.
    distance: int


class ImageIndex:
    """Images by the paths and names that tables give them."""

    def __init__(self, images: Iterable[SourceEntry]) -> None:
        self._by_path: dict[tuple[_Scope, str], list[SourceEntry]] = defaultdict(list)
        self._by_folded: dict[tuple[_Scope, str], list[SourceEntry]] = defaultdict(list)
        self._by_stem: dict[tuple[_Scope, str], list[SourceEntry]] = defaultdict(list)
        self._by_name: dict[tuple[_Scope, str], list[SourceEntry]] = defaultdict(list)
        self._names: set[str] = set()
        #: Those that hold images, also in folders below them.
        self._folders: set[tuple[_Scope, _Parts]] = set()
        for image in images:
            folder = PurePosixPath(image.path).parent.parts
            name = PurePosixPath(image.path).name
            keys = {same_name_key(name), stem_key(name), _without_zeros(stem_key(name))}
            self._names |= keys
            for scope in (image.scope, None):
                while folder and (scope, folder) not in self._folders:
                    self._folders.add((scope, folder))
                    folder = folder[:-1]
                folder = PurePosixPath(image.path).parent.parts
                self._by_path[scope, composed(image.path)].append(image)
                self._by_folded[scope, same_name_key(image.path)].append(image)
                self._by_stem[scope, stem_key(image.path)].append(image)
                for key in keys:
                    self._by_name[scope, key].append(image)

    def has_name(self, text: str) -> bool:
        """True for the name of an image, whether or not this image is here."""
        if len(text) > 1024 or "\n" in text:
            return False
        return names_image_file(text) or same_name_key(_path_in(text).rpartition("/")[2]) in self._names

    def match(self, table: SourceEntry, files: Sequence[str]) -> list[Match | None]:
        """Find the images of all rows of one table.

        A row has a path below the table's folder. If no row has, all paths are read below another folder: without
        the folders that all of them begin with (those of another machine), or below a folder above the table. Names
        alone count where the table has no folders at all, or one on another machine, and the images one here.
        """
        found = self._match_in(table.scope, table, files)
        if table.scope == 0 and not all(found):
            anywhere = self._match_in(None, table, files)
            found = [own or other for own, other in zip(found, anywhere, strict=True)]
        return found

    def _match_in(self, scope: _Scope, table: SourceEntry, files: Sequence[str]) -> list[Match | None]:
        rows = [_parts(file) for file in files]
        folder = PurePosixPath(table.path).parent.parts
        found = [self._at(scope, (*folder, *row)) for row in rows]
        if any(found):
            return found
        if all(len(row) <= 1 for row in rows):
            while folder and (scope, folder) not in self._folders:
                # A folder of tables: the images are elsewhere.
                folder = folder[:-1]
            return [self._named(scope, folder, row) for row in rows]
        readings = [(stripped, find) for stripped in range(_shared(rows) + 1) for find in self._readings(scope, folder)]
        tried = rows[:: max(1, len(rows) // _TRIED_ROWS)]
        # The first of the best: as near to the table, with as many folders, as possible.
        stripped, find = max(readings, key=lambda each: sum(each[1](row[each[0] :]) is not None for row in tried))
        best = [_guessed(find(row[stripped:])) for row in rows]
        if not any(best) and len({row[:-1] for row in rows}) == 1 and all(map(_is_absolute, files)):
            named = [self._named(scope, folder, row) for row in rows]
            if len({PurePosixPath(match.image.path).parent for match in named if match}) == 1:
                return named
            if not any(named):
                uploaded = [(*row[:-1], _UPLOADED.sub("", row[-1])) if row else row for row in rows]
                return [self._named(scope, folder, row) for row in uploaded]
        return best

    def _readings(self, scope: _Scope, folder: _Parts) -> Iterator[Callable[[_Parts], Match | None]]:
        """Yield what a path can be relative to: the table's folder, those above it, any folder."""
        for depth in range(len(folder), -1, -1):
            above = folder[:depth]
            yield lambda row, above=above: self._at(scope, (*above, *row))  # type: ignore[misc]
        yield lambda row: self._ending_with(scope, row)

    def _at(self, scope: _Scope, parts: _Parts) -> Match | None:
        path = posixpath.normpath("/".join(parts))
        for each in dict.fromkeys((path, unquote(path))):
            stem = stem_key(each) if has_image_name(each) else same_name_key(each)
            folded, same_stem = self._by_folded.get((scope, same_name_key(each))), self._by_stem.get((scope, stem))
            candidates = (self._by_path.get((scope, composed(each))), folded, _of_case(same_stem, each), same_stem)
            for distance, images in enumerate(candidates):
                if images and len(images) == 1:
                    return Match(image=images[0], distance=distance)
        return None

    def _named(self, scope: _Scope, folder: _Parts, row: _Parts) -> Match | None:
        """An image below the table's folder with a name that is unique there."""
        if not row:
            return None
        name, above = row[-1], "".join(f"{part}/" for part in folder)
        keys = [same_name_key(name), *([stem_key(name)] if has_image_name(name) else [])]
        for key in keys:
            images = [image for image in self._namesakes(scope, key) if image.path.startswith(above)]
            if len(images) == 1:
                return Match(image=images[0], distance=4)
        return None

    def _namesakes(self, scope: _Scope, key: str) -> Sequence[SourceEntry]:
        """The images of one name; none if they are so many that a name is ambiguous."""
        images = self._by_name.get((scope, key), [])
        return images if len(images) <= _MAX_NAMESAKES else ()

    def _ending_with(self, scope: _Scope, row: _Parts) -> Match | None:
        """An image with this path below any folder; names alone do not count."""
        if len(row) < 2:
            return None
        name, path = row[-1], "/" + same_name_key("/".join(row))
        key = stem_key(path) if has_image_name(name) else path
        namesakes = self._namesakes(scope, stem_key(name) if has_image_name(name) else same_name_key(name))
        images = [image for image in namesakes if f"/{stem_key(image.path)}".endswith(key)]
        return Match(image=images[0], distance=4) if len(images) == 1 else None


def names_image_file(text: str) -> bool:
    """True if a cell of a table has the name of an image, as programs write it."""
    return has_image_name(_path_in(text))


def _path_in(file: str) -> str:
    """The path in what a table has as the name of a file; of an address the name alone."""
    bare = file.strip(_UNSEEN)
    if len(bare) < _MAX_WRAPPED and (wrapped := _WRAPPED.fullmatch(bare)):
        bare = next(filter(None, wrapped.groups()))
    path = _BEHIND_NAME.sub("", bare.strip()).replace("\\", "/").removeprefix(_LOCAL_FILES)
    if "://" not in path:
        without_query = _QUERY.sub("", path)
        return without_query if has_image_name(without_query) else path
    address = urlsplit(path)
    return unquote(address.path if address.scheme == "file" else address.path.rpartition("/")[2])


def _parts(file: str) -> _Parts:
    """The parts of a path as any system writes it."""
    return tuple(part for part in _path_in(file).split("/") if part not in ("", "."))


def _without_zeros(stem: str) -> str:
    """The number that a spreadsheet makes of a name such as `0012`, and COCO's results of theirs."""
    return stem.lstrip("0") or "0" if stem.isdecimal() else stem


def _is_absolute(file: str) -> bool:
    return re.match(r"\s*(?:file://|(?:[A-Za-z]:)?[/\\])", file) is not None


def _shared(rows: Sequence[_Parts]) -> int:
    """The number of folders that all rows begin with."""
    folders = [row[:-1] for row in rows if row]
    shortest, longest = min(folders), max(folders)
    return next((i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), min(map(len, folders)))


def _guessed(match: Match | None) -> Match | None:
    return None if match is None else Match(image=match.image, distance=4 + match.distance)


def _of_case(images: Sequence[SourceEntry] | None, path: str) -> list[SourceEntry]:
    stem = str(PurePosixPath(path).with_suffix("")) if has_image_name(path) else path
    return [image for image in images or () if composed(str(PurePosixPath(image.path).with_suffix(""))) == stem]
