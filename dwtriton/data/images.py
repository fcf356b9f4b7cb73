"""Decoding image files, and resizing, flipping and recolouring images with their boxes (docs/recipe.md#data).

Pixels stay bytes until their batch is on its device: model/pixels.py normalises them.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dwtriton.config.kinds import MAX_PIXELS
from dwtriton.config.schema import DataConfig

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
REFUSED_SUFFIXES = {".heic", ".heif", ".avif", ".jp2", ".psd", ".dng"}  # images too, to be named and not passed over
READ_FORMATS = "JPEG, PNG, WebP, GIF, BMP or TIFF"
EXIF_ORIENTATION = 0x0112  # the tag
QUARTER_TURNS = {5, 6, 7, 8}  # its values that swap width and height
TORCHVISION_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF")  # Pillow's names of what it decodes; MPO is a kind of JPEG
PILLOW_FORMATS = ("BMP", "DIB", "TIFF")  # Pillow turns TIFF upright by itself
ORIENTED_FORMATS = ("JPEG", "MPO", "PNG")  # those whose orientation torchvision applies
STILL_FORMATS = ("JPEG", "MPO", "PNG")  # whose first frame is the image
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
MOST_HUE = 0.1  # of the colour circle, that `data.colour` = 1 shifts hues by
MODES_WITHOUT_RANGE = ("I", "F")  # of Pillow: 32 bits a value


class BrokenImageError(Exception):
    """An image file that cannot be used; the text names the file and says why."""


class OtherSizeError(BrokenImageError):
    """An image file of another size than annotated."""


class Header(NamedTuple):
    """What the first bytes of an image file say, without decoding it."""

    kind: str  # Pillow's name of the format
    width: int  # as the pixels lie in the file
    height: int
    orientation: int  # EXIF's, 1 where there is none or where it is not applied
    has_16_bits: bool  # a value

    @property
    def stored_size(self) -> tuple[int, int]:
        """(h, w) as the pixels lie in the file."""
        return self.height, self.width

    @property
    def upright_size(self) -> tuple[int, int]:
        """(h, w) of the image turned upright."""
        return self.stored_size[::-1] if self.orientation in QUARTER_TURNS else self.stored_size


def read_header(path: Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header of an image file.

    Raises BrokenImageError if the file is missing or no ordinary file, if it is no image, has a format that
    `read_image` refuses or several frames, or more than `max_pixels`.
    """
    if path.exists() and not path.is_file():
        raise BrokenImageError(f"{path}: is no ordinary file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` is the limit
            with Image.open(path) as image:
                kind, (width, height), exif = image.format, image.size, image.info.get("exif")
                frames, has_16_bits = getattr(image, "n_frames", 1), ";16" in str(image.tile)  # in the raw mode
    except Image.DecompressionBombError:
        advice = "cut it into tiles with another program, as nothing here decodes more"
        raise BrokenImageError(f"{path}: has more than {MAX_PIXELS} pixels; {advice}") from None
    except Exception as error:  # OSError, and for broken headers whatever Pillow's readers stumble over
        reason = _unidentified(path) if isinstance(error, UnidentifiedImageError) else error
        raise BrokenImageError(f"{path}: {getattr(error, 'strerror', None) or reason}") from None
    if kind not in TORCHVISION_FORMATS + PILLOW_FORMATS:
        raise BrokenImageError(f"{path}: is a {kind} file; save it as JPEG or PNG")
    if frames > 1 and kind not in STILL_FORMATS:
        raise BrokenImageError(f"{path}: has {frames} frames")
    if width * height > max_pixels:
        problem = f"has {width}x{height} pixels, more than data.max_pixels = {max_pixels}"
        raise BrokenImageError(f"{path}: {problem}; cut it into tiles (python -m dwtriton.data tile), or raise that")
    return Header(kind, width, height, _orientation(exif) if kind in ORIENTED_FORMATS else 1, has_16_bits)


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of the image that `read_image` returns, without decoding. Raises as `read_header`."""
    height, width = read_header(path).upright_size
    return width, height


def _unidentified(path: Path) -> str:
    beginning = path.open("rb").read(12)
    if beginning[4:8] == b"ftyp" and beginning[8:] in HEIF_BRANDS:
        return "is a HEIC file; save it as JPEG or PNG"
    return "cannot be identified as an image" if beginning else "is empty"


def _orientation(exif: bytes | None) -> int:
    tags = Image.Exif()
    try:
        tags.load(exif or b"")
        return tags.get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged tags: decoders ignore them
        return 1


def read_image(
    path: Path, size: tuple[int, int] | None = None, exif: str = "auto", max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Decode an image file into RGB, uint8 [3, h, w].

    Greyscale, palette and CMYK images become RGB, 16 bits become 8, transparency is dropped. `size` is the annotated
    (h, w). The image is turned upright as its EXIF orientation says; not if `exif` is "ignore", nor if it is "auto" and
    `size` is that of the image as it lies in the file.
    Raises BrokenImageError as `read_header` and if the file is truncated or undecodable, and OtherSizeError.
    """
    return to_bytes(decode(path, size, exif, max_pixels))


def to_bytes(image: Tensor) -> Tensor:
    """Return a decoded image as uint8, the upper 8 of 16 bits."""
    return tv.to_dtype(image, torch.uint8, scale=True)


def decode(path: Path, size: tuple[int, int] | None, exif: str, max_pixels: int) -> Tensor:
    """Decode as `read_image`, but into the file's own uint8 or uint16."""
    header = read_header(path, max_pixels)
    lies_as_annotated = size == header.stored_size != header.upright_size
    upright = exif == "apply" or (exif == "auto" and not lies_as_annotated)
    found = header.upright_size if upright else header.stored_size
    if size not in (None, found):
        raise OtherSizeError(f"{path}: {_wrong_size(header, found, size)}")
    try:
        if header.kind in PILLOW_FORMATS:
            return _decode_with_pillow(path)
        content = torch.from_numpy(np.fromfile(path, np.uint8))  # torchvision opens only files whose names are UTF-8
        image = decode_bytes(content, upright)
    except (RuntimeError, OSError, ValueError, SyntaxError) as error:
        raise BrokenImageError(f"{path}: {str(error).splitlines()[0]}") from None
    if image.ndim != 3 or tuple(image.shape[-2:]) != found:
        raise BrokenImageError(f"{path}: decodes to {list(image.shape)}, its header says {found[1]}x{found[0]}")
    return image


def decode_bytes(content: Tensor, upright: bool) -> Tensor:
    """Decode a file, uint8 [n], into RGB, uint8 or uint16 [3, h, w], by torchvision's operator.

    Its functions around the operators warn since 0.29 that they will go.
    """
    return torch.ops.image.decode_image(content, ImageReadMode.RGB.value, upright)


def encode_jpeg(image: Tensor, quality: int) -> bytes:
    """Return a JPEG file of an image, uint8 [3, h, w]; `quality` is 1 to 100."""
    return torch.ops.image.encode_jpeg(image.contiguous(), quality).numpy().tobytes()


def _wrong_size(header: Header, found: tuple[int, int], size: tuple[int, int]) -> str:
    upright = found == header.upright_size
    state = "when upright" if upright else "as it lies in the file"
    other = header.stored_size if upright else header.upright_size
    hint = f"; data.exif = {'ignore' if upright else 'apply'} takes it so" if size == other else ""
    return f"is {found[1]}x{found[0]} {state}, its annotations say {size[1]}x{size[0]}{hint}"


def _decode_with_pillow(path: Path) -> Tensor:
    with Image.open(path) as image:
        if image.mode in MODES_WITHOUT_RANGE:
            raise ValueError("has 32 bits a value; save it with 8 or 16")
        if image.mode.startswith("I;16"):
            return torch.from_numpy(np.array(image).astype(np.uint16)).expand(3, -1, -1)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


NEARLY_BLACK = "of 16 bits that uses 12 at most, nearly black"  # as messages say it


def is_nearly_black(image: Tensor) -> bool:
    """Whether a decoded image of 16 bits uses 12 of them at most, as cameras write: it shows as nearly black."""
    return image.dtype == torch.uint16 and int(image.int().max()) < 2**12


def draw_augmentation(cfg: DataConfig, seed: int, scale_seed: int | None = None) -> tuple[int, tuple[int, ...]]:
    """Draw the short side in pixels (uniform integer in `cfg.short_side`) and the sides to flip, for one sample.

    The short side is that of `scale_seed` if one is given, for samples that share it.
    """
    rng = np.random.default_rng(seed)
    short_side = _draw_short_side(cfg, rng)
    if scale_seed is not None:
        short_side = _draw_short_side(cfg, np.random.default_rng(scale_seed))
    return short_side, tuple(side for side, share in ((-1, cfg.flip), (-2, cfg.vertical_flip)) if rng.random() < share)


def _draw_short_side(cfg: DataConfig, rng: np.random.Generator) -> int:
    low, high = cfg.short_side
    return int(rng.integers(low, high, endpoint=True))


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


def flip(image: Tensor, boxes: Tensor, side: int = -1) -> tuple[Tensor, Tensor]:
    """Mirror left and right, x becomes width - x; or with side -2 top and bottom, y becomes height - y."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    size = image.shape[side]
    corners = (size - x2, y1, size - x1, y2) if side == -1 else (x1, size - y2, x2, size - y1)
    return image.flip(side), torch.stack(corners, dim=-1)


def change_colours(image: Tensor, strength: float, seed: int) -> Tensor:
    """Draw and apply factors of brightness, contrast and saturation from 1 - strength to 1 + strength, and a hue.

    image: uint8 [3, h, w]. The hue turns by up to `strength` times `MOST_HUE` of the colour circle either way.
    """
    rng = np.random.default_rng((seed, 1))  # apart from `draw_augmentation`, which draws the same without it
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).tolist()
    image = tv.adjust_brightness(image, brightness)
    image = tv.adjust_contrast(image, contrast)
    image = tv.adjust_saturation(image, saturation)
    return tv.adjust_hue(image, MOST_HUE * float(rng.uniform(-strength, strength)))
