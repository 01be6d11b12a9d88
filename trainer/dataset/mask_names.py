"""Finds the mask file of each image by their names.

A mask lies beside its image (`cat.mask.png`, OneTrainer's `cat-masklabel.png`, `cat_mask.png`, `mask_cat.png`), or
under its name in a folder `masks`, `mask-img`, `train_mask`, `alpha`, or `conditioning` (kohya's
`conditioning_data_dir`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.dataset.input_files import SourceEntry, has_image_name, same_name_key, stem_key
from trainer.protocol.text import _

#: Endings of a mask's stem, in order of precedence; files with such names are never images.
_ENDINGS = (".mask", "-masklabel")
#: Parts of a mask's stem if an image has the rest of its name.
_AFFIXED = re.compile(
    r"(?P<before>.+)(?:[ _-](?:mask|matte|alpha)(?:[ _-]?\d{1,3})?|(?-i:(?<=[a-z0-9])Mask))|mask[ _-](?P<after>.+)",
    re.IGNORECASE,
)
#: Folders of masks, if images outside of them have the same names.
_MASK_FOLDER = re.compile(
    r"(?:(?P<before>.+)[ _-])?masks?(?:[ _-](?P<after>.+))?|mattes?|alphas?|pha|conditioning(?:_data)?", re.IGNORECASE
)
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "pictures", "photos")

#: Images of one name beyond which a mask's is not looked for.
_MAX_NAMESAKES = 20

#: The files that are masks for one reason: the scope, and what they have in common. A few of them are looked at.
MaskGroup = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class _MaskName:
    """What the path of a mask says about its image."""

    entry: SourceEntry
    #: Possible paths of the image without its ending, the first existing one counts.
    image_paths: tuple[str, ...]
    #: Key of the mask folder, or of the folder in which files are masks if they have an image.
    group: str
    #: The file is a mask even if no image has its name.
    is_certain: bool = False
    #: For files of a mask folder: where it is. If no path is there, the only image of the same name below will do.
    parent: str | None = None
    precedence: int


class _ImageNames:
    """The images that masks can belong to, by path and by name."""

    def __init__(self) -> None:
        self._by_path: defaultdict[tuple[int, str], list[SourceEntry]] = defaultdict(list)
        self._by_name: defaultdict[tuple[int, str], list[SourceEntry]] = defaultdict(list)

    def add(self, image: SourceEntry) -> None:
        # An image whose name has two extensions is found under both.
        for key in {stem_key(image.path), same_name_key(image.path)}:
            self._by_path[image.scope, key].append(image)
            self._by_name[image.scope, key.rpartition("/")[2]].append(image)

    def of(self, mask: _MaskName) -> Sequence[SourceEntry]:
        """The images of a mask: those at its path, else the only one of its name below `parent`."""
        scope = mask.entry.scope
        keys = [(scope, same_name_key(path)) for path in mask.image_paths]
        found = next((self._by_path[key] for key in keys if key in self._by_path), [])
        if found or mask.parent is None:
            return found
        stem = PurePosixPath(mask.entry.path).stem
        namesakes = self._by_name.get((scope, same_name_key(stem)), [])
        below = [image for image in namesakes[: _MAX_NAMESAKES + 1] if image.path.startswith(mask.parent)]
        return below if len(below) == 1 else ()


class MaskIndex:
    """The mask files among the input files, recognized by name alone, and the image of each."""

    def __init__(self, entries: Iterable[SourceEntry], rejected: Collection[MaskGroup] = ()) -> None:
        """Find the masks; those of the `rejected` groups are images after all."""
        #: Mask by the source of its image.
        self.by_image: dict[str, SourceEntry] = {}
        #: Sources of all masks; none of them is an image.
        self.sources: set[str] = set()
        #: Masks that no image uses, by source, and the reason.
        self.unused: dict[str, str] = {}
        #: Masks with an image that could be images by their names, by what they have in common.
        self.doubtful: defaultdict[MaskGroup, list[SourceEntry]] = defaultdict(list)

        images = _ImageNames()
        in_folders: defaultdict[MaskGroup, list[_MaskName]] = defaultdict(list)
        beside: list[_MaskName] = []
        for entry in entries:
            if entry.row_labels is not None or not has_image_name(entry.path):
                continue
            name, in_folder = _beside_image(entry), _in_mask_folder(entry)
            if in_folder and (name is None or not name.is_certain):
                name = in_folder
            if name is None or (entry.scope, name.group) in rejected:
                images.add(entry)
            elif name.parent is not None:
                in_folders[entry.scope, name.group].append(name)
            else:
                beside.append(name)
        found = list(_folder_masks(in_folders, images, beside))
        for name in beside:
            if not name.is_certain:
                images.add(name.entry)
        found += [(name, images.of(name)) for name in beside]
        for name, of_name in sorted(found, key=lambda each: each[0].precedence):
            if of_name or name.is_certain or name.parent is not None:
                self._add(name, of_name)

    def _add(self, name: _MaskName, images: Sequence[SourceEntry]) -> None:
        mask = name.entry
        self.sources.add(mask.source)
        if images and not name.is_certain:
            self.doubtful[mask.scope, name.group].append(mask)
        used_by = [image for image in images if self.by_image.setdefault(image.source, mask) is mask]
        if not images:
            self.unused[mask.source] = _("it is a mask, but no image has its name")
        elif not used_by:
            reason = _("it is a mask, but {image} has another mask, which is preferred", image=images[0].source)
            self.unused[mask.source] = reason


def _folder_masks(
    folders: Mapping[MaskGroup, Sequence[_MaskName]], images: _ImageNames, beside: list[_MaskName]
) -> Iterator[tuple[_MaskName, Sequence[SourceEntry]]]:
    """Yield the masks of each folder with their images; the files of other folders become images, or masks beside them.

    A class can be called "masks": a folder of that name in which no file has a partner holds images.
    """
    # Outer folders first: images in `mask_project/img` have their masks in `mask_project/mask`.
    for _group, names in sorted(folders.items(), key=lambda item: item[0][1].count("/")):
        partners = [(name, images.of(name)) for name in names]
        if any(of_mask for _name, of_mask in partners):
            yield from partners
        else:
            for name in names:
                if own := _beside_image(name.entry):
                    beside.append(own)
                else:
                    images.add(name.entry)


def _beside_image(entry: SourceEntry) -> _MaskName | None:
    """Parse the name of a mask that lies beside its image; None for other names."""
    pure = PurePosixPath(entry.path)
    for precedence, ending in enumerate(_ENDINGS):
        if pure.stem.lower().endswith(ending) and len(pure.stem) > len(ending):
            image = str(pure.with_name(pure.stem[: -len(ending)]))
            return _MaskName(entry=entry, image_paths=(image,), group="", is_certain=True, precedence=precedence)
    if (match := _AFFIXED.fullmatch(pure.stem)) is None:
        return None
    image = str(pure.with_name(match["before"] or match["after"]))
    group = f"{pure.parent}/{'*_mask' if match['before'] else 'mask_*'}"
    return _MaskName(entry=entry, image_paths=(image,), group=group, precedence=len(_ENDINGS))


def _in_mask_folder(entry: SourceEntry) -> _MaskName | None:
    """Parse the path of a possible mask in a folder of masks; None for other paths."""
    pure = PurePosixPath(entry.path)
    parts = pure.parent.parts
    for depth in reversed(range(len(parts))):
        if (match := _MASK_FOLDER.fullmatch(parts[depth])) is None:
            continue
        named = [part for part in (match["before"], match["after"]) if part]
        siblings: list[tuple[str, ...]] = [(), *((name,) for name in (*named, *_IMAGE_FOLDERS))]
        affixed = _AFFIXED.fullmatch(pure.stem)
        stems = [pure.stem, *([affixed["before"] or affixed["after"]] if affixed else [])]
        images = [
            PurePosixPath(*parts[:depth], *folder, *parts[depth + 1 :], stem) for stem in stems for folder in siblings
        ]
        return _MaskName(
            entry=entry,
            image_paths=tuple(map(str, images)),
            group=same_name_key("/".join(parts[: depth + 1])),
            parent="".join(f"{part}/" for part in parts[:depth]),
            precedence=len(_ENDINGS) + 1,
        )
    return None


def mask_paths_beside(image: Path) -> Iterable[Path]:
    """Where the mask of a loose image can be."""
    return (image.with_name(f"{image.stem}{ending}.png") for ending in _ENDINGS)
