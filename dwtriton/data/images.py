"""Decoding image files, and resizing and flipping images with their boxes (docs/recipe.md#data).

Pixels stay bytes until their batch is on its device: model/pixels.py normalises them.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dwtriton.config.schema import DataConfig

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
EXIF_ORIENTATION = 0x0112  # the tag
QUARTER_TURNS = {5, 6, 7, 8}  # its values that swap width and height
READ_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF")  # Pillow's names of what `read_image` reads; MPO is a kind of JPEG
ORIENTED_FORMATS = ("JPEG", "MPO", "PNG")  # those whose orientation it applies


class BrokenImageError(Exception):
    """An image file that cannot be used; the text names the file and says why."""


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of the image that `read_image` returns, read from the file's header without decoding.

    Raises BrokenImageError if the file is missing, is no image, or has a format that `read_image` refuses.
    """
    try:
        with Image.open(path) as image:
            kind, (width, height), exif = image.format, image.size, image.info.get("exif")
            frames = getattr(image, "n_frames", 1)
    except Exception as error:  # OSError, and for broken headers whatever Pillow's readers stumble over
        reason = "cannot be identified as an image" if isinstance(error, UnidentifiedImageError) else error
        raise BrokenImageError(f"{path}: {getattr(error, 'strerror', None) or reason}") from None
    if kind not in READ_FORMATS:
        raise BrokenImageError(f"{path}: is a {kind} file; save it as JPEG or PNG")
    if frames > 1 and kind != "MPO":
        raise BrokenImageError(f"{path}: has {frames} frames")
    return (height, width) if kind in ORIENTED_FORMATS and _is_turned(exif) else (width, height)


def _is_turned(exif: bytes | None) -> bool:
    tags = Image.Exif()
    try:
        tags.load(exif or b"")
        return tags.get(EXIF_ORIENTATION) in QUARTER_TURNS
    except Exception:  # damaged tags: decoders ignore them
        return False


def read_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Decode a JPEG, PNG, WebP or GIF file into RGB, uint8 [3, h, w], turned upright as its EXIF orientation says.

    Greyscale, palette and CMYK images become RGB, 16 bits become 8, transparency is dropped. `size` is the annotated
    (h, w). Raises BrokenImageError if the file is missing, truncated, undecodable, has several frames or another size.
    """
    try:
        image = decode_image(str(path), ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise BrokenImageError(f"{path}: {str(error).splitlines()[0]}") from None
    if image.ndim != 3:
        raise BrokenImageError(f"{path}: has {len(image)} frames")
    height, width = image.shape[-2:]
    if size not in (None, (height, width)):
        raise BrokenImageError(f"{path}: is {width}x{height} when upright, its annotations say {size[1]}x{size[0]}")
    return tv.to_dtype(image, torch.uint8, scale=True)


def draw_augmentation(cfg: DataConfig, seed: int) -> tuple[int, bool]:
    """Draw the short side in pixels (uniform integer in `cfg.short_side`) and whether to flip, for one sample."""
    rng = np.random.default_rng(seed)
    low, high = cfg.short_side
    return int(rng.integers(low, high, endpoint=True)), bool(rng.random() < cfg.flip)


def resized_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """(h, w) of the same aspect ratio with neither side over its limit: `int(side * scale + 0.5)`."""
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: Tensor, boxes: Tensor, short_side: int, long_side: int) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """Resize bilinearly without antialias; boxes scale by the actual ratio of each axis and are clipped.

    image uint8 [3, h, w] and boxes float32 [G, 4] xyxy pixels become image uint8 [3, h', w'], boxes float32 [G, 4] in
    its pixels, and the scale factors (sx, sy), network pixels per original pixel.
    """
    height, width = image.shape[-2:]
    new_height, new_width = resized_size(height, width, short_side, long_side)
    image = tv.resize(image, [new_height, new_width], InterpolationMode.BILINEAR, antialias=False)
    sx, sy = new_width / width, new_height / height
    boxes = boxes * boxes.new_tensor([sx, sy, sx, sy])  # [G, 4]
    limits = boxes.new_tensor([new_width, new_height, new_width, new_height])
    return image, boxes.clamp(min=0).minimum(limits), (sx, sy)


def flip(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror left and right: x becomes width - x."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width = image.shape[-1]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=-1)
