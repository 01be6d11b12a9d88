"""Recognizes what the files of a folder are, from their paths alone, by the conventions of trainers and generators.

Known are kohya's folders and projects, OneTrainer, ai-toolkit, SimpleTuner, diffusers' DreamBooth and imagefolder, the
outputs of AUTOMATIC1111, the caches of all of them, and what this program writes itself. A class can be called `model`,
`reg` or `samples`: a name decides only together with its neighbors. Masks: `mask_names.py`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import PurePosixPath

from trainer.dataset.input_files import CAPTION_EXTENSIONS, NO_REPEATS, KohyaFolder, has_image_name
from trainer.protocol.edits import Layout
from trainer.protocol.report import FileRole

_Folder = tuple[str, ...]
_Marks = dict[_Folder, FileRole]

#: kohya's repeats and trigger. More digits are a date (`20230415_holiday`).
_KOHYA_FOLDER = re.compile(r"(\d{1,5})_(.*\S)\s*")
#: In front of a name, a year rather than repeats, unless there are repeats beside it (`2023_holiday`).
_YEAR = re.compile(r"(19|20)\d\d")
#: Classes that are numbered from 0 (`0_cat`, `1_dog`, `2_fox`) or with zeros in front (`01_cat`), and not repeats.
_MIN_NUMBERED_CLASSES = 3

_IMAGE_FOLDERS, _ANY_FOLDER = re.compile(r"im(g|age)s?"), re.compile(r".*", re.DOTALL)
_REGULARIZATION = re.compile(r"(regs?|class)([_ -]?(im(g|age)s?|data|dir))*|regulari[sz]ation.*")
#: Hardly the name of a class.
_NAMED_REGULARIZATION = re.compile(r"regular|reg[_ -]?(im(g|age)s?|data|dir)")
_INSTANCE = re.compile(r"instance([_ -]?(im(g|age)s?|data|dir))*")
_OUTPUT = re.compile(r"logs?|models?|outputs?|samples?")
_SAMPLES = re.compile(r"samples?([_ -]?images?)?|validation[_ -]images|sampling")
#: Of programs that log trainings, and of diffusers' checkpoints, beside which it draws `image_0.png`.
_LOGS, _CHECKPOINT, _FINAL_SAMPLE = re.compile(r"wandb|mlruns|lightning_logs"), "checkpoint-", re.compile(r"image_\d+")
#: AUTOMATIC1111 writes to these below `outputs`.
_GENERATED = re.compile(r"(txt2img|img2img|extras)-(images|grids|samples)")
_CACHES = re.compile(
    r"_?(latents?|t_e|clip_vision|vae|text_?embeds?|te|image_embeds?)[_-]?cache|workspace-cache|_controls"
)
#: Inputs of a ControlNet, and the label maps of datasets for segmentation (VOC, ADE20K).
_CONTROLS = re.compile(
    r"(.+[_ -])?controls?([_ -]?(net|im(g|age)s?|\d+))*|conditioning[_ -]im(g|age)s?"
    r"|(canny|depth|hed|open[_ -]?pose|normal|seg(mentation)?|segmentation[_ -]?(class|object)|label)"
    r"([_ -]?(maps?|im(g|age)s?))?(es|s)?|annotations?|ground[_ -]?truths?|(optical[_ -]?)?flows?"
)
#: Those that can also be a class of drawings, unless the images beside them have no name of their own.
_DRAWN_CONTROLS = re.compile(r"line[_ -]?arts?|scribbles?|soft[_ -]?edges?|edges?|mlsd|poses?|sketch(es)?")
_THUMBNAILS = re.compile(r"thumb(nail)?s?|previews?")
#: Folders of what was put aside, unless it is a class among others, and folders that hold all images beside them.
_SET_ASIDE = re.compile(
    r"(.+[_ -]|_)?(backups?|bak|trash(ed)?|recycled?|(to[_ -]?)?deleted?|reject(ed|s)?|discard(ed|s)?|unused|debug"
    r"|vis(uali[sz]ations?)?|old[_ -]?versions?)([_ -](im(g|age)s?|files?|\d+))*|_(old|orig(inals?)?|skip(ped)?|bad)"
)
_ALL_IMAGES = re.compile(r"im(g|age)s?|pictures?|photos?|pics?|train(ing)?|data(set)?|keep|kept|selected|final")
#: Names of control images beside their images: `cat_depth.png`. At least so many of them, and for half of the images.
_CONTROL_NAME = (
    r"(?:(?:depth|canny|hed|open_?pose|dw_?pose|normal|seg|segmentation|line_?art|scribble|soft_?edge|mlsd|control|cond"
    r"|conditioning|roughness|metal(?:lic|ness)|ao|height|displacement|bump|specular)(?:[_-]?map)?s?)"
)
_PAIRED_CONTROL = re.compile(rf"(?P<before>.+)[_.-]{_CONTROL_NAME}|{_CONTROL_NAME}[_.-](?P<after>.+)")
_MIN_PAIRS = 3
#: The image among the maps of a material: `brick_albedo.png` beside `brick_normal.png`.
_COLOR_MAP = re.compile(r"[_.-](?:albedo|diffuse|base_?color|colou?r|rgb)$")
#: Names of the two images of a pair for an editing model, and of their folders, the input first: ControlNet's `source`
#: and `target`, fal's `cat_start.png` and `cat_end.png`.
_PAIRED_NAMES = {
    "source": "target",
    "src": "tgt",
    "start": "end",
    "input": "output",
    "before": "after",
    "ref": "target",
    "reference": "target",
    "r": "t",
    "lr": "hr",
    "lq": "hq",
    "low": "high",
    "noisy": "clean",
    "blur": "sharp",
}
_PAIRED_INPUT = re.compile(rf"(?P<pair>.+)[_-](?P<name>{'|'.join(_PAIRED_NAMES)})")
#: What web UIs show for weights: `cat.preview.png`, or `cat.png`, beside `cat.safetensors`.
_PREVIEW_ENDING = ".preview"
#: OneTrainer's images for a conditioning that is not a mask.
_CONTROL_ENDING = "-condlabel"
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"})

#: Names of samples that kohya, ai-toolkit, OneTrainer and SimpleTuner draw during a training.
_SAMPLE_NAME = re.compile(
    r".*_(e?\d{6}|e\d{6}_\d+)_\d{2}_\d{14}(_\d+)?|\d{10,}__\d{6,}_\d+|.*training-sample-\d+-\d+-\d+.*|step_\d+_.*"
    r"|ComfyUI_temp_.*"
)
_CACHE_ENDINGS = frozenset({".npz", ".npy"})
_TRAINER_ENDINGS = frozenset(
    {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".gguf", ".toml", ".yaml", ".yml", ".log", ".sh", ".bat"}
    | {".ps1", ".py", ".ipynb", ".lock"}
)
_WEIGHTS = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".onnx", ".gguf"})
_TRAINER_NAME = re.compile(r"events\.out\.tfevents\..*|multidatabackend.*\.json|aspect_ratio_bucket.*\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecognizedFile:
    """What a file is, and the folder that says so; empty if its own name does."""

    role: FileRole = FileRole.IMAGE
    folder: str = ""
    kohya: KohyaFolder = NO_REPEATS


def recognize(paths: Sequence[str], root: str = "", layout: Layout = Layout.AUTO) -> dict[str, RecognizedFile]:
    """Return the role of each file of one folder or archive; without any other image, samples are images.

    Args:
        paths: Paths in the folder or archive, with slashes.
        root: Name of the folder itself; it may be a kohya folder.
        layout: `PLAIN` recognizes repeats only.
    """
    tree = _Tree(paths, root)
    kohya = {folder: _kohya_of(folder, tree) for folder in list(tree.files)}
    if layout is Layout.PLAIN:
        return {path: RecognizedFile(kohya=kohya[tree.folder_of(path)]) for path in paths}
    marks: _Marks = {}
    for rule in _RULES:
        marks |= rule(tree)
    found = {path: _recognized(path, tree, marks, kohya[tree.folder_of(path)]) for path in paths}
    if any(each.role is FileRole.IMAGE and has_image_name(path) for path, each in found.items()):
        return found
    return {path: _unless_nothing_else(path, each) for path, each in found.items()}


def class_folders(paths: Sequence[str], below: str = "") -> dict[str, str]:
    """The class folder of each image: the first level below what all share, `below` and an imagefolder's `train`."""
    folders = {path: PurePosixPath(path.removeprefix(below)).parent.parts for path in paths}
    levels = zip(*folders.values(), strict=False)
    shared = sum(1 for _level in takewhile(lambda level: len(set(level)) == 1, levels))
    levels_below = {path: parts[shared:] for path, parts in folders.items()}
    if all(parts and parts[0].lower() in _SPLITS for parts in levels_below.values()):
        # An imagefolder's own splits, which are not used: the split follows from the content.
        levels_below = {path: parts[1:] for path, parts in levels_below.items()}
    return {path: next(iter(parts), "") for path, parts in levels_below.items()}


class _Tree:
    """The files by folder, and the folders below each folder."""

    def __init__(self, paths: Iterable[str], root: str) -> None:
        self._root: _Folder = (root,) if root else ()
        self.files: defaultdict[_Folder, list[str]] = defaultdict(list)
        self.folders: defaultdict[_Folder, set[str]] = defaultdict(set)
        #: Names of all files below each folder.
        self.below: defaultdict[_Folder, list[str]] = defaultdict(list)
        #: Stems of the images below each folder, with their folders in it.
        self.stems: defaultdict[_Folder, set[str]] = defaultdict(set)
        #: Stems of the weights in each folder.
        self.weights: defaultdict[_Folder, set[str]] = defaultdict(set)
        for path in paths:
            folder, name = self.folder_of(path), path.rpartition("/")[2]
            self.files[folder].append(name)
            if _is_weights(name):
                self.weights[folder].add(PurePosixPath(name).stem.casefold())
            for depth in range(len(folder) + 1):
                self.below[folder[:depth]].append(name)
                if depth < len(folder):
                    self.folders[folder[:depth]].add(folder[depth])
                if has_image_name(name):
                    stem = "/".join((*folder[depth:], PurePosixPath(name).stem))
                    self.stems[folder[:depth]].add(stem.casefold())
        self.paired_controls = {folder: set(_paired_controls(self, folder)) for folder in list(self.files)}

    def folder_of(self, path: str) -> _Folder:
        return (*self._root, *path.split("/")[:-1])

    def path_of(self, folder: _Folder) -> str:
        """The folder as the paths name it, ending with a slash."""
        return "".join(f"{part}/" for part in folder[len(self._root) :])

    def children(self, folder: _Folder, names: re.Pattern[str]) -> Iterator[_Folder]:
        """Yield the subfolders whose whole names match, ignoring case."""
        return ((*folder, name) for name in sorted(self.folders[folder]) if names.fullmatch(name.lower()))

    def images(self, folder: _Folder) -> list[str]:
        """The names of the images below a folder."""
        return [name for name in self.below[folder] if has_image_name(name)]

    def has_kohya_folders(self, folder: _Folder) -> bool:
        return any(_repeats(child[-1]) for child in self.children(folder, _KOHYA_FOLDER))

    def has_weights_or_logs(self, folder: _Folder) -> bool:
        return any(_is_weights(name) or name.startswith("events.out.tfevents") for name in self.below[folder])


def _paired_controls(tree: _Tree, folder: _Folder) -> Iterator[str]:
    """Yield the stems of control images beside their images: `cat_depth` beside `cat`."""
    stems = {PurePosixPath(name).stem.casefold() for name in tree.files[folder] if has_image_name(name)}
    by_affix: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for stem in stems:
        if image := _image_of_control(stem):
            by_affix[stem.replace(image, "*", 1)][stem] = image
    plain = len(stems) - sum(map(len, by_affix.values()))
    inputs = {stem for stem in stems if (match := _PAIRED_INPUT.fullmatch(stem)) and _output_of(match) in stems}
    if len(inputs) >= max(_MIN_PAIRS, len(stems) / 4):
        yield from inputs
    colored = stems | {_COLOR_MAP.sub("", stem) for stem in stems}
    for images in by_affix.values():
        if len(images) >= max(_MIN_PAIRS, plain / 2) and colored.issuperset(images.values()):
            yield from images


def _output_of(match: re.Match[str]) -> str:
    """The stem of the second image of a pair."""
    return f"{match['pair']}{match[0][match.end('pair')]}{_PAIRED_NAMES[match['name']]}"


def _image_of_control(stem: str) -> str:
    """The stem of the image of a control image, by its name; empty for other names."""
    match = _PAIRED_CONTROL.fullmatch(stem)
    return (match["before"] or match["after"]) if match else ""


def _repeats(name: str) -> int | None:
    """Repeats of a kohya folder by its name alone; None for other folders and for years."""
    match = _KOHYA_FOLDER.fullmatch(name)
    return None if match is None or _YEAR.fullmatch(match[1]) else int(match[1])


def _is_weights(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _WEIGHTS


def _kohya_of(folder: _Folder, tree: _Tree) -> KohyaFolder:
    """Repeats and trigger of the nearest kohya folder."""
    for depth in reversed(range(len(folder))):
        if (match := _KOHYA_FOLDER.fullmatch(folder[depth])) is None:
            continue
        if not _YEAR.fullmatch(match[1]) or tree.has_kohya_folders(folder[:depth]):
            repeats = 1 if _are_numbered_classes(tree, folder[:depth]) else max(1, int(match[1]))
            return KohyaFolder(repeats=repeats, trigger=match[2], depth=len(folder) - 1 - depth)
    return NO_REPEATS


def _are_numbered_classes(tree: _Tree, folder: _Folder) -> bool:
    """True if the folders in it are classes with an index in front, such as `0_cat`, `1_dog`, `2_fox` or `01_cat`."""
    matches = [_KOHYA_FOLDER.fullmatch(name) for name in tree.folders[folder]]
    indexes = [match[1] for match in matches if match]
    is_padded = any(len(index) > 1 and index.startswith("0") for index in indexes)
    numbers, n = sorted(map(int, indexes)), len(indexes)
    is_in_order = numbers == list(range(n)) or (is_padded and numbers == list(range(1, n + 1)))
    return n >= _MIN_NUMBERED_CLASSES and is_in_order


def _kohya_containers(tree: _Tree) -> Iterator[tuple[_Folder, _Folder]]:
    """Yield each folder that may be a kohya project, with the folder that has its `10_name` folders."""
    for folder in list(tree.folders):
        if tree.has_kohya_folders(folder):
            yield folder, folder
        for child in sorted(tree.folders[folder]):
            container = (*folder, child)
            is_output = _REGULARIZATION.fullmatch(child.lower()) or _OUTPUT.fullmatch(child.lower())
            if not is_output and tree.has_kohya_folders(container):
                yield folder, container


def _kohya_projects(tree: _Tree) -> _Marks:
    """kohya's `reg`, `log` and `model` beside `img/10_name`."""
    marks: _Marks = {}
    for project, container in _kohya_containers(tree):
        regularization = list(tree.children(project, _REGULARIZATION))
        marks |= dict.fromkeys(regularization, FileRole.REGULARIZATION)
        outputs = [child for child in tree.children(project, _OUTPUT) if not tree.has_kohya_folders(child)]
        is_complete = _IMAGE_FOLDERS.fullmatch(container[-1].lower() if container else "") is not None
        for output in outputs:
            has_samples = any(True for _child in tree.children(output, _SAMPLES))
            if tree.has_weights_or_logs(output) or has_samples or (is_complete and len(outputs + regularization) > 1):
                marks[output] = FileRole.TRAINER
    return marks


def _class_images(tree: _Tree) -> _Marks:
    """diffusers' `class_images` beside `instance_images`; `regularization_images` and `reg/1_name` beside anything."""
    marks: _Marks = {}
    for folder in list(tree.folders):
        has_instances = any(True for _child in tree.children(folder, _INSTANCE))
        for child in tree.children(folder, _REGULARIZATION):
            is_named = _NAMED_REGULARIZATION.match(child[-1].lower()) is not None
            is_kohya = child[-1].lower().startswith("reg") and tree.has_kohya_folders(child)
            if has_instances or is_named or is_kohya:
                marks[child] = FileRole.REGULARIZATION
    return marks


def _samples(tree: _Tree) -> _Marks:
    """Samples beside weights, logs or captioned images, or with the names of trainers; what AUTOMATIC1111 wrote."""
    marks: _Marks = {}
    for folder in list(tree.below):
        name, parent = (folder[-1].lower() if folder else ""), folder[:-1]
        images = [PurePosixPath(image).stem for image in tree.files[folder] if has_image_name(image)]
        is_drawn = bool(images) and all(_SAMPLE_NAME.fullmatch(image) for image in images)
        is_beside_weights = _SAMPLES.fullmatch(name) and tree.weights[parent]
        is_uncaptioned = _SAMPLES.fullmatch(name) and _is_uncaptioned_alone(tree, folder)
        is_log = name == "images" and parent and parent[-1].lower() in ("log", "logs")
        is_inversion = "textual_inversion" in map(str.lower, parent) and (name == "images" or "embeddings" in name)
        is_final = any(child.startswith(_CHECKPOINT) for child in tree.folders[folder])
        is_drawn |= is_final and bool(images) and all(map(_FINAL_SAMPLE.fullmatch, images))
        if (
            is_drawn
            or is_beside_weights
            or is_uncaptioned
            or _GENERATED.fullmatch(name)
            or _LOGS.fullmatch(name)
            or is_log
            or is_inversion
        ):
            marks[folder] = FileRole.SAMPLE
    return marks


def _is_uncaptioned_alone(tree: _Tree, folder: _Folder) -> bool:
    """True if images above or beside a folder have captions, and its own have not."""
    around = (folder[:-1], *tree.children(folder[:-1], _ANY_FOLDER))
    return bool(folder) and not _has_captions(tree, folder) and any(_has_captions(tree, each) for each in around)


def _has_captions(tree: _Tree, folder: _Folder) -> bool:
    """True if most images of a folder have a text beside them."""
    stems = {PurePosixPath(name).stem for name in tree.files[folder] if name.lower().endswith(CAPTION_EXTENSIONS)}
    images = [PurePosixPath(name).stem for name in tree.files[folder] if has_image_name(name)]
    return 2 * sum(image in stems for image in images) > len(images)


def _caches(tree: _Tree) -> _Marks:
    """Caches of latents, and the `blobs` of a hub cache if its `snapshots` hold the files too."""
    marks: _Marks = {}
    for folder in list(tree.below):
        name, parent = (folder[-1].lower() if folder else ""), folder[:-1]
        is_blobs = name == "blobs" and tree.images((*parent, "snapshots"))
        if _CACHES.fullmatch(name) or is_blobs:
            marks[folder] = FileRole.CACHE
    return marks


def _controls(tree: _Tree) -> _Marks:
    """Images for a ControlNet or an editing model: most have the name of an image in a folder beside theirs."""
    marks: _Marks = {}
    for folder in list(tree.folders):
        names = {name.lower() for name in tree.folders[folder]}
        inputs = [
            child for child in tree.children(folder, _ANY_FOLDER) if _PAIRED_NAMES.get(child[-1].lower()) in names
        ]
        controls = [*tree.children(folder, _CONTROLS), *inputs]
        drawn = [child for child in tree.children(folder, _DRAWN_CONTROLS) if _are_copies(tree, child, _IMAGE_FOLDERS)]
        # Oxford-IIIT Pet has `annotations/trimaps` beside `images`.
        inner = (each for child in controls for each in tree.children(child, _ANY_FOLDER))
        beside = tree.stems[folder].union(*(tree.stems[child] for child in tree.children(folder, _IMAGE_FOLDERS)))
        marks |= {
            each: FileRole.CONTROL for each in inner if 2 * len(tree.stems[each] & beside) > len(tree.stems[each])
        }
        marks |= dict.fromkeys((*filter(partial(_are_copies, tree), controls), *drawn), FileRole.CONTROL)
    return marks


def _thumbnails(tree: _Tree) -> _Marks:
    found = (child for folder in list(tree.folders) for child in tree.children(folder, _THUMBNAILS))
    return dict.fromkeys(filter(partial(_are_copies, tree), found), FileRole.CACHE)


def _are_copies(tree: _Tree, child: _Folder, beside_names: re.Pattern[str] = _ANY_FOLDER) -> bool:
    """True if most images of a folder have the names of images beside it, in such folders or none."""
    folder, stems = child[:-1], {_image_of_control(stem) or stem for stem in tree.stems[child]}
    siblings = [sibling for sibling in tree.children(folder, beside_names) if sibling != child]
    beside = tree.stems[folder].union(*(tree.stems[sibling] for sibling in siblings))
    return bool(stems) and 2 * len(stems & beside) > len(stems)


def _skipped(tree: _Tree) -> _Marks:
    """kohya's `0_name`, unless it is the first of several numbered classes; `trash` beside or below all images."""
    marks: _Marks = {}
    for folder in list(tree.folders):
        for child in tree.children(folder, _KOHYA_FOLDER):
            if _repeats(child[-1]) == 0 and not _are_numbered_classes(tree, folder):
                marks[child] = FileRole.SKIPPED
        has_all = any(map(has_image_name, tree.files[folder])) or any(
            map(tree.images, tree.children(folder, _ALL_IMAGES))
        )
        for child in tree.children(folder, _SET_ASIDE):
            if has_all or _are_copies(tree, child):
                marks[child] = FileRole.SKIPPED
    return marks


def _own_output(tree: _Tree) -> _Marks:
    """Folders that `prepare` or `run` made."""
    return {folder: FileRole.OWN_OUTPUT for folder in list(tree.files) if _is_own_output(tree, folder)}


def _is_own_output(tree: _Tree, folder: _Folder) -> bool:
    files, folders = set(tree.files[folder]), tree.folders[folder]
    is_dataset = "report.json" in files and bool(folders & {"thumbnails", "sheets"})
    return is_dataset or ("spec.json" in files and bool(files & {"events.jsonl", "attempt.json"}))


#: Later ones count more for the same folder; of nested folders the inner one counts.
_RULES: tuple[Callable[[_Tree], _Marks], ...] = (
    _class_images,
    _kohya_projects,
    _controls,
    _thumbnails,
    _samples,
    _caches,
    _skipped,
    _own_output,
)


def _recognized(path: str, tree: _Tree, marks: Mapping[_Folder, FileRole], kohya: KohyaFolder) -> RecognizedFile:
    folder = tree.folder_of(path)
    around = [folder[:depth] for depth in range(len(folder) + 1) if folder[:depth] in marks]
    own = next((each for each in around if marks[each] is FileRole.OWN_OUTPUT), None)
    if own is not None:
        return RecognizedFile(role=FileRole.OWN_OUTPUT, folder=tree.path_of(own), kohya=kohya)
    role = marks[around[-1]] if around else FileRole.IMAGE
    by_name = _role_by_name(path, tree)
    if role is FileRole.TRAINER and has_image_name(path):
        role = FileRole.SAMPLE
    elif by_name is not FileRole.IMAGE and role is not FileRole.CACHE:
        # Latents and weights lie anywhere.
        return RecognizedFile(role=by_name, kohya=kohya)
    return RecognizedFile(role=role, folder=tree.path_of(around[-1]) if around else "", kohya=kohya)


def _role_by_name(path: str, tree: _Tree) -> FileRole:
    pure = PurePosixPath(path)
    ending = pure.suffix.lower()
    if ending in _CACHE_ENDINGS:
        return FileRole.CACHE
    if ending in _TRAINER_ENDINGS or _TRAINER_NAME.fullmatch(pure.name.lower()):
        return FileRole.TRAINER
    stem = pure.stem.casefold()
    weights = tree.weights[tree.folder_of(path)]
    if (stem.endswith(_PREVIEW_ENDING) and weights) or (stem in weights and has_image_name(path)):
        return FileRole.SAMPLE
    if stem in tree.paired_controls[tree.folder_of(path)] and has_image_name(path):
        return FileRole.CONTROL
    if stem.endswith(_CONTROL_ENDING) and has_image_name(path):
        is_beside = stem.removesuffix(_CONTROL_ENDING) in tree.stems[tree.folder_of(path)]
        return FileRole.CONTROL if is_beside else FileRole.IMAGE
    return FileRole.IMAGE


def _unless_nothing_else(path: str, found: RecognizedFile) -> RecognizedFile:
    """Who hands in samples alone wants to train on them; of a dataset of ours, its images."""
    is_caption = found.role not in (FileRole.CACHE, FileRole.TRAINER)
    is_own = found.role is not FileRole.OWN_OUTPUT or path[len(found.folder) :].startswith("images/")
    if is_own and (is_caption or has_image_name(path)):
        return RecognizedFile(kohya=found.kohya)
    return found
