"""Edited copies of an image, which must not straddle a split, and families of images that only look alike."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from tests.trainer.dataset import defective_images

#: C and G differ in a stroke. O and Q, or C, cannot be told at the size of a thumbnail.
_SIGNS = "ADEGHKMRSTXZ47C"
Edit = Callable[[Image.Image], Image.Image]


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _cropped(left: float, top: float, right: float, bottom: float) -> Edit:
    """Cut off shares of width and height."""

    def edit(image: Image.Image) -> Image.Image:
        width, height = image.size
        box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        return image.crop(tuple(map(round, box)))  # type: ignore[arg-type]

    return edit


def _framed(share: float, color: str) -> Edit:
    return lambda image: ImageOps.expand(image, round(share * min(image.size)), color)


def _gray(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def _letterboxed(image: Image.Image) -> Image.Image:
    bar = round(image.height * 0.15)
    wide = Image.new("RGB", (image.width, image.height + 2 * bar))
    wide.paste(image, (0, bar))
    return wide


def _watermarked(image: Image.Image) -> Image.Image:
    return Image.blend(image, _captioned(image), 0.5)


def _captioned(image: Image.Image) -> Image.Image:
    """Opaque text in the middle and in a corner."""
    copy = image.copy()
    draw, (width, height) = ImageDraw.Draw(copy), image.size
    _outlined(draw, (width * 0.5, height * 0.5), "© Example", width / 12)
    _outlined(draw, (width * 0.8, height * 0.94), "example", width / 22)
    return copy


def _tiled(image: Image.Image) -> Image.Image:
    """Half-transparent text all over."""
    layer = image.copy()
    draw, step = ImageDraw.Draw(layer), image.width // 4
    font = ImageFont.load_default(step / 4)
    for row, y in enumerate(range(step // 4, image.height, step // 2)):
        for x in range(step // 2 * (row % 2), image.width + step, step):
            draw.text((x, y), "stock", "white", font, "mm", stroke_width=1, stroke_fill="gray")
    return Image.blend(image, layer, 0.4)


def _signed(image: Image.Image) -> Image.Image:
    """Opaque text in a corner."""
    copy = image.copy()
    _outlined(ImageDraw.Draw(copy), (image.width * 0.8, image.height * 0.95), "@example", image.width / 22)
    return copy


def _outlined(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: float) -> None:
    font = ImageFont.load_default(max(8, size))
    draw.text(place, text, "white", font, "mm", stroke_width=2, stroke_fill="black")


def burst_frame(image: Image.Image, seed: int = 0) -> Image.Image:
    """The next frame: the camera moved a little, and so did something in the picture; other grain."""
    rng = np.random.default_rng(seed)
    turned = image.rotate(rng.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, fillcolor=(90, 90, 90))
    frame = _cropped(0.03, 0.02, 0.01, 0.03)(turned).resize(image.size)
    side = min(frame.size) // 6
    x, y = (int(rng.integers(side, length - 2 * side)) for length in frame.size)
    frame.paste(frame.crop((x, y, x + side, y + side)), (x + side // 2, y))
    grain = rng.normal(0, 4, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(frame) + grain, 0, 255).astype(np.uint8))


#: Edits that hold for photographs and drawings alike.
EDITS: Mapping[str, Edit] = {
    "gray": _gray,
    "border of 5 %": _framed(0.05, "white"),
    "border of 10 %": _framed(0.1, "black"),
    "two borders": lambda image: _framed(0.05, "saddlebrown")(_framed(0.03, "white")(image)),
    "letterbox": _letterboxed,
    "turned by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180°": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 270°": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "mirrored": ImageOps.mirror,
    "crop of 3 % a side": _cropped(0.03, 0.03, 0.03, 0.03),
    "crop of 5 % a side": _cropped(0.05, 0.05, 0.05, 0.05),
    "crop of 10 % a side": _cropped(0.1, 0.1, 0.1, 0.1),
    "crop of 15 % on the left": _cropped(0.15, 0, 0, 0),
    "crop of 15 % at a corner": _cropped(0, 0.15, 0.15, 0),
    "JPEG of quality 30": lambda image: _jpeg(image, 30),
    "resized to 40 %": lambda image: image.resize((image.width * 2 // 5, image.height * 2 // 5)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "gray, turned, cropped": lambda image: _gray(_cropped(0.05, 0.05, 0.05, 0.05)(image)).transpose(
        Image.Transpose.ROTATE_90
    ),
    "mirrored, border": lambda image: _framed(0.08, "white")(ImageOps.mirror(image)),
    "border of 15 %": _framed(0.15, "navy"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "watermark": _watermarked,
    "tiled watermark": _tiled,
    "signed": _signed,
}
#: Edits that hide a part: of a drawing, they cannot be told from another icon of one template.
PHOTO_EDITS: Mapping[str, Edit] = {
    **EDITS,
    "opaque text": _captioned,
    "frame of a burst": burst_frame,
}


def photograph(seed: int) -> Image.Image:
    """Shapes with the texture of grass or water, as few real pictures are even."""
    texture = np.random.default_rng(seed).normal(0, 14, (128, 171, 1)).repeat(3, axis=2) + 128
    fine = Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8)).resize((512, 384), Image.Resampling.BICUBIC)
    scene = np.asarray(defective_images.scene(seed, 512, 384), dtype=np.int16)
    return Image.fromarray(np.clip(scene + np.asarray(fine, dtype=np.int16) - 128, 0, 255).astype(np.uint8))


def icon(seed: int) -> Image.Image:
    """An icon of its own: shapes on white."""
    rng = Random(seed)
    image = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(7):
        x, y, side = rng.randrange(30, 150), rng.randrange(30, 150), rng.randrange(30, 76)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + side, y + side), fill=_color(rng), outline="black", width=3)
    return image


def _color(rng: Random) -> tuple[int, int, int]:
    return rng.randrange(30, 230), rng.randrange(30, 230), rng.randrange(30, 230)


def _letter(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: object) -> None:
    draw.text(place, text, fill=fill, font=ImageFont.load_default(size), anchor="mm")  # type: ignore[arg-type]


def _template_icon(index: int) -> Image.Image:
    """A rounded square with another letter."""
    image = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((20, 20, 236, 236), 40, fill=(40, 90, 170))
    _letter(draw, (128, 128), _SIGNS[index], 150, "white")
    return image


def _badge(index: int) -> Image.Image:
    """A document with another letter in its corner."""
    image = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(image)
    draw.polygon([(60, 20), (170, 20), (210, 60), (210, 236), (60, 236)], fill=(232, 238, 248), outline="navy", width=4)
    for y in range(80, 200, 24):
        draw.line((80, y, 190, y), fill=(150, 160, 180), width=6)
    _letter(draw, (185, 195), _SIGNS[index], 90, (190, 30, 30))
    return image


def _folder(index: int) -> Image.Image:
    """A folder, and the same with an emblem."""
    image = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(image)
    draw.polygon([(24, 60), (100, 60), (120, 84), (232, 84), (232, 212), (24, 212)], fill="#4a84c4", outline="#204a80")
    draw.rounded_rectangle((24, 100, 232, 212), 8, fill="#6aa4e4", outline="#204a80", width=4)
    if index:
        _letter(draw, (128, 158), _SIGNS[index], 76, "#204a80" if index % 2 else "white")
    return image


def _character(index: int) -> Image.Image:
    """One pose, with other hair, clothes and face."""
    rng = Random(100 + index)
    image = Image.new("RGB", (256, 342), (226, 232, 240))
    draw, skin = ImageDraw.Draw(image), rng.choice([(240, 205, 175), (200, 150, 110), (120, 80, 55)])
    for x in (98, 134):
        draw.rectangle((x, 240, x + 24, 326), fill=_color(rng), outline="black", width=3)
    draw.rounded_rectangle((90, 146, 168, 248), 14, fill=_color(rng), outline="black", width=3)
    draw.ellipse((86, 54, 170, 144), fill=skin, outline="black", width=3)
    draw.pieslice((80, 40, 176, 40 + rng.randrange(70, 120)), 180, 360, fill=_color(rng), outline="black", width=3)
    for x in (112, 138):
        draw.ellipse((x, 92, x + 9, 103), fill="black")
    draw.arc((112, 100 + rng.randrange(12), 144, 128), 0, 180, fill="black", width=3)
    _letter(draw, (129, 196), _SIGNS[index], 44, _color(rng))
    return image


def _placed_character(index: int) -> Image.Image:
    """One drawing of a character at another place, in another size or on another ground."""
    rng = Random(400 + index)
    figure = _character(0)
    cut = Image.fromarray((np.asarray(figure) != np.asarray(figure.getpixel((0, 0)))).any(axis=2))
    box = cut.getbbox()
    assert box is not None
    scale = rng.choice([0.35, 0.5, 0.65, 0.8])
    size = round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale)
    grounds = ["khaki", "white", "lightgreen", "lightblue", "pink", "sandybrown", "gainsboro", "slategray"]
    image = Image.new("RGB", (256, 256), grounds[index % len(grounds)])
    place = rng.randrange(4, 252 - size[0]), rng.randrange(4, 252 - size[1])
    image.paste(figure.crop(box).resize(size), place, cut.crop(box).resize(size))
    return image


def _stamp(index: int) -> Image.Image:
    """A postage stamp of a series: frame and lettering are the same, value and motif are not."""
    rng = Random(200 + index)
    image, ink = Image.new("RGB", (240, 294), (245, 240, 225)), (60, 40, 110)
    draw = ImageDraw.Draw(image)
    draw.rectangle((14, 14, 226, 280), outline=ink, width=5)
    _letter(draw, (120, 258), "REPUBLIK", 22, ink)
    _letter(draw, (46, 46), str(5 * (index + 1)), 30, ink)
    for _ in range(6):
        x, y, r = rng.randrange(60, 180), rng.randrange(80, 210), rng.randrange(10, 40)
        draw.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=rng.randrange(2, 6), fill=(150, 140, 190))
    return image


def _product(index: int) -> Image.Image:
    """A bottle on white, in other colors and with another label."""
    rng = Random(300 + index)
    image = Image.new("RGB", (320, 320), (252, 252, 252))
    draw = ImageDraw.Draw(image)
    draw.ellipse((90, 272, 230, 296), fill=(190, 190, 190))
    draw.rounded_rectangle((112, 100, 208, 284), 20, fill=_color(rng))
    draw.rectangle((142, 46, 178, 104), fill=_color(rng))
    draw.rectangle((112, 160, 208, 230), fill=_color(rng))
    for y in (178, 206):
        _letter(draw, (160, y), "".join(rng.choice("ABCDEFGHKLMNOPRSTUVWXZ") for _ in range(6)), 20, "white")
    return image


def _screen(index: int) -> Image.Image:
    return defective_images.page(index, 800, 600, 14)


#: Images of one family share their template; none is a copy of another.
LOOK_ALIKES: Mapping[str, Callable[[int], Image.Image]] = {
    "icons of one template": _template_icon,
    "documents with a badge": _badge,
    "folders with and without an emblem": _folder,
    "characters in one pose": _character,
    "one character on many grounds": _placed_character,
    "stamps of one series": _stamp,
    "product shots on white": _product,
    "screens of text": _screen,
}
FAMILY_SIZE = 15
