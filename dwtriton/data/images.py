"""Decoding image files."""

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as tv

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


def read_image(path: Path, size: tuple[int, int] | None = None) -> torch.Tensor:
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
