"""Similarity of samples to training images, to prompts and to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from trainer.dataset.images.image_features import image_feature, stack_features
from trainer.dataset.images.perceptual_hash import image_hashes
from trainer.dataset.split.overlap import JobImage, thumbnail_path
from trainer.errors import DatasetError, MissingModelError, first_line, hub_problem

#: Candidates from each cheap measure; each is then compared pixel by pixel (5 ms).
_CANDIDATES = 5
#: Above this ratio of sides, training used a crop, so the center square is compared too.
_CROPPED = 1.1
#: Largest `image_distance` of a sample that copies a training image. Tuned on 7,000 real images (precision 0.99).
_MAX_DISTANCE = 26.0
#: Side at which two images are compared, and of the blocks whose mean difference counts, px.
_COMPARED_PX, _BLOCK_PX = 64, 6
#: Border that an alignment may fill with pixels from outside, px.
_FILLED_PX = 4

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class NearestImage:
    """The training image nearest to a sample."""

    #: Its index in the album.
    index: int
    #: Whether they show the same, but for encoding, size and a slight crop.
    is_same: bool
    #: Largest mean difference of any 6x6 block of 64x64 pixels (0 to 255); mirrored or not, whichever is smaller.
    image_distance: float
    is_mirrored: bool
    #: Euclidean distance of the features: about 2 for unrelated images, 0.7 for similar ones.
    distance: float


@dataclass(frozen=True, kw_only=True)
class _Features:
    """Cheap measures of an image, for finding candidates."""

    #: 251 numbers that describe content and style.
    feature: Float
    #: 16x16 gray pixels.
    blurred: Float
    #: All blank images look alike.
    is_blank: bool


class Album:
    """The training images, indexed for nearest-neighbor search (2 ms per image)."""

    def __init__(
        self,
        members: Sequence[JobImage],
        folders: Sequence[Path],
        scratch: Path,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Index the images.

        Args:
            members: The training images.
            folders: Folders of the datasets.
            scratch: Folder for temporary images; needed as long as the album is used.
            check: Called between images.

        Raises:
            DatasetError: there are no images, or one is missing or damaged.
        """
        if not members:
            raise DatasetError("There are no training images to compare with.", "Add training images.")
        self.members = tuple(members)
        self._scratch = scratch
        self.thumbnails = tuple(
            thumbnail_path(member.image, folders[member.source], scratch / f"{index}.png")
            for index, member in enumerate(members)
        )
        features = []
        for thumbnail in self.thumbnails:
            check()
            features.append(_features_of(open_rgb(thumbnail)))
        self._features = np.stack([each.feature for each in features])
        self._blurred = np.stack([each.blurred for each in features])

    def nearest(self, sample: Path, check: Callable[[], None] = lambda: None) -> NearestImage:
        """Find the training image most similar to a sample; calls `check` between comparisons."""
        pil_image = open_rgb(sample)
        features = _features_of(pil_image)
        distances = _distances(self._features, features.feature)
        found: list[tuple[float, int, bool]] = []
        for is_mirrored in (False, True):
            for index in self._candidates(_features_of(ImageOps.mirror(pil_image)) if is_mirrored else features):
                check()
                measures = [image_distance(crop, sample, mirrored=is_mirrored) for crop in self._crops(index)]
                found.append((min(measures), index, is_mirrored))
        measure, index, is_mirrored = min(found)
        is_same = measure <= _MAX_DISTANCE and not features.is_blank
        if not is_same:
            # Pixel distances mean little between different images; features compare content.
            index, is_mirrored = int(distances.argmin()), False
            measure = min(one for one, at, _ in found if at == index)
        return NearestImage(
            index=index,
            is_same=is_same,
            image_distance=measure,
            is_mirrored=is_mirrored,
            distance=float(distances.min()),
        )

    def distance(self, sample: Path) -> float:
        """Feature distance of a sample to the nearest training image."""
        return float(_distances(self._features, _features_of(open_rgb(sample)).feature).min())

    def _candidates(self, features: _Features) -> list[int]:
        by_feature = np.argsort(_distances(self._features, features.feature), kind="stable")[:_CANDIDATES]
        by_pixels = np.argsort(_distances(self._blurred, features.blurred), kind="stable")[:_CANDIDATES]
        return sorted({*by_feature.tolist(), *by_pixels.tolist()})

    def _crops(self, index: int) -> Iterator[Path]:
        """The whole training image and, if it is long, its center square."""
        yield self.thumbnails[index]
        center = self._scratch / f"{index}-center.png"
        if not center.exists():
            pil_image = open_rgb(self.thumbnails[index])
            if max(pil_image.size) <= _CROPPED * min(pil_image.size):
                return
            ImageOps.fit(pil_image, (min(pil_image.size),) * 2).save(center)
        yield center


def image_distance(one: Path, other: Path, *, mirrored: bool = False) -> float:
    """Measure how much two thumbnails differ at most: the mean difference of their worst 6x6 block, 0 to 255.

    Measured as they are and after an alignment; the smaller value counts. This tells re-encoded, resized and cropped
    copies from images that only look alike.
    """
    first, second = _compared(one), _compared(other)
    if mirrored:
        second = np.ascontiguousarray(second[:, ::-1])
    unaligned = _worst_block(first, second)
    return unaligned if unaligned <= _MAX_DISTANCE else min(unaligned, _aligned_distance(first, second))


def _compared(path: Path) -> Float:
    with Image.open(path) as image:
        small = image.convert("RGB").resize((_COMPARED_PX, _COMPARED_PX), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def _worst_block(first: Float, second: Float) -> float:
    """Largest mean difference of a block: the mean of all pixels hides a changed detail, the maximum is noise."""
    gap = np.abs(first - second).max(axis=2)
    sums = np.pad(gap.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    n = _BLOCK_PX
    return float((sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]).max() / n**2)


def _aligned_distance(first: Float, second: Float) -> float:
    """The worst block after an affine alignment (ECC; Evangelidis & Psarakis 2008) and one gain for brightness."""

    def gray(pixels: Float) -> Float:
        return np.asarray(cv2.cvtColor(pixels / 255, cv2.COLOR_RGB2GRAY), dtype=np.float32)

    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
    start = np.eye(2, 3, dtype=np.float32)
    everywhere = np.ones((_COMPARED_PX, _COMPARED_PX), dtype=np.uint8)
    try:
        _, warp = cv2.findTransformECC(gray(first), gray(second), start, cv2.MOTION_AFFINE, until, everywhere, 5)
    except cv2.error:  # no convergence: the images differ
        return float("inf")
    if np.abs(warp[:, :2] - np.eye(2)).max() > 0.25:
        return float("inf")  # scaled or sheared by a quarter: more than a slight crop
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(second, warp, (_COMPARED_PX, _COMPARED_PX), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inner = (slice(_FILLED_PX, -_FILLED_PX), slice(_FILLED_PX, -_FILLED_PX))
    target, warped = first[inner], np.asarray(warped, dtype=np.float32)[inner]
    gain = float((target * warped).sum() / max(float((warped * warped).sum()), 1e-6))
    return _worst_block(target, np.clip(warped * gain, 0, 255))


def feature_distance(one: Path, other: Path) -> float:
    """Euclidean distance of two images' features."""
    return float(np.linalg.norm(_features_of(open_rgb(one)).feature - _features_of(open_rgb(other)).feature))


def pixel_difference(one: Path, other: Path) -> float:
    """Mean absolute difference of two images of one size, relative to the pixel range."""
    first, second = (np.asarray(open_rgb(path), dtype=np.float32) for path in (one, other))
    return float(np.abs(first - second).mean() / 255)


def clip_score(images_ND: Tensor, prompts_ND: Tensor) -> float:
    """Mean cosine similarity of images and prompts, both unit vectors (CLIP score, arXiv:2104.08718, unscaled)."""
    return float((images_ND * prompts_ND).sum(dim=1).mean())


def _distances(rows_ND: Float, one_D: Float) -> Float:
    return np.asarray(np.linalg.norm(rows_ND - one_D, axis=1), dtype=np.float32)


def _features_of(pil_image: Image.Image) -> _Features:
    hashes = image_hashes(pil_image)
    return _Features(
        feature=stack_features([image_feature(pil_image)])[0],
        blurred=np.frombuffer(hashes.blurred, dtype=np.uint8).astype(np.float32),
        is_blank=hashes.is_blank,
    )


def open_rgb(path: Path) -> Image.Image:
    """Open an image of any mode as RGB."""
    with Image.open(path) as opened:
        return opened.convert("RGB")


_CLIP = "clip"
#: DINO (Caron et al. 2021, arXiv:2104.14294) is a plain ViT; DINOv2 is arXiv:2304.07193.
_DINO = frozenset({"dinov2", "dinov2_with_registers", "dinov3_vit", "vit"})
_HINT = "Set samples.similarity_model to a transformers folder with a CLIP or a DINO and its preprocessor."
#: Images embedded per batch.
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """A CLIP or DINO that embeds images, and prompts if it reads text."""

    folder: str
    model: Any
    processor: Any
    #: None for a model that reads no text.
    tokenizer: Any
    device: torch.device

    @torch.no_grad()
    def images(self, paths: Sequence[Path], check: Callable[[], None] = lambda: None) -> Tensor:
        """Embed images of any size as unit vectors, [N, D] on the CPU; calls `check` between batches."""
        parts = []
        for start in range(0, len(paths), _BATCH):
            check()
            pixels = self.processor(images=[open_rgb(path) for path in paths[start : start + _BATCH]])["pixel_values"]
            pixels_BCHW = torch.stack([torch.as_tensor(each) for each in pixels]).to(self.device)
            if self.tokenizer is None:
                parts.append(self.model(pixel_values=pixels_BCHW).last_hidden_state[:, 0])
            else:
                parts.append(self.model.get_image_features(pixel_values=pixels_BCHW).pooler_output)
        return normalize(torch.cat(parts).float().cpu(), dim=1)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Tensor | None:
        """Embed prompts as unit vectors, [N, D] on the CPU; None if the model reads no text."""
        if self.tokenizer is None:
            return None
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return normalize(self.model.get_text_features(**tokens).pooler_output.float().cpu(), dim=1)


def load_embedder(folder: str, device: torch.device) -> Embedder:
    """Load the model of a local folder, in eval mode and fp32; never from the hub.

    Raises:
        MissingModelError: it is missing, damaged, or neither CLIP nor DINO.
    """
    location = Path(folder).expanduser()
    if not (location / "config.json").is_file():
        raise MissingModelError(f"There is no similarity model in {folder}.", _HINT)
    try:
        config = AutoConfig.from_pretrained(location, local_files_only=True, trust_remote_code=False)
        if config.model_type not in {_CLIP, *_DINO}:
            raise MissingModelError(f"{folder} is a {config.model_type} model, neither CLIP nor DINO.", _HINT)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        model = AutoModel.from_pretrained(location, dtype=torch.float32, use_safetensors=True, **options)
        # Pillow, because torchvision is not a dependency.
        processor = AutoImageProcessor.from_pretrained(location, backend="pil", **options)
        tokenizer = AutoTokenizer.from_pretrained(location, **options) if config.model_type == _CLIP else None
    except MissingModelError:
        raise
    except Exception as error:
        # The loaders raise anything from KeyError to OSError.
        unknown = MissingModelError(f"The similarity model {folder} cannot be loaded ({first_line(error)}).", _HINT)
        raise hub_problem(folder, error) or unknown from error
    model = model.to(device).eval().requires_grad_(False)
    return Embedder(folder=folder, model=model, processor=processor, tokenizer=tokenizer, device=device)
