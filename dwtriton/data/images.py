"""Decoding image files."""

from pathlib import Path

import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as tv

ORIENTATION = 0x0112  # EXIF's tag
ROTATED = {5, 6, 7, 8}  # its values for which width and height change places


class BrokenImageError(Exception):
    """An image file that cannot be used; the text names the file and says why."""


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file turned as its EXIF orientation says, without decoding it.

    Raises OSError if it cannot be opened.
    """
    with Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION) in ROTATED else (width, height)


def read_image(path: Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Decode a JPEG, PNG, WebP or GIF file into RGB, uint8 [3, h, w], turned upright as its EXIF orientation says.

    Greyscale, palette and CMYK images become RGB, 16 bits become 8, transparency is dropped. `size` is the (h, w) that
    the annotations were made for. Raises BrokenImageError if the file is missing, truncated, undecodable, has several
    frames or another size.
    """
    try:
        image = decode_image(str(path), ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise BrokenImageError(f"{path}: {reason}") from None
    if image.ndim != 3:
        raise BrokenImageError(f"{path}: has {len(image)} frames")
    height, width = image.shape[-2:]
    if size not in (None, (height, width)):
        raise BrokenImageError(f"{path}: is {width}x{height} when upright, its annotations say {size[1]}x{size[0]}")
    return tv.to_dtype(image, torch.uint8, scale=True)
