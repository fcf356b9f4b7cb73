"""Images of any kind as pixels, as samples in network size, and in batches of one padded size."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dwtriton.config.kinds import MAX_PIXELS
from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.data.buckets import Size, padded_size
from dwtriton.data.coco import Sample
from dwtriton.data.images import BrokenImageError, read_image, resize

ImageInput = str | os.PathLike | Image.Image | np.ndarray | Tensor

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
MAX_WAITING_BATCHES = 4  # samples that wait for others of their size, in batches


def image_list(images: ImageInput | Iterable[ImageInput]) -> list[ImageInput]:
    """Return the images as a list: of one image, or of the entries of a sequence or of a four-dimensional batch."""
    if isinstance(images, ImageInput) and getattr(images, "ndim", 0) < 4:
        return [images]
    if not isinstance(images, Iterable) or isinstance(images, bytes | Mapping):
        raise UserError(f"images are a {type(images).__name__}, not an image or a list of images")
    return list(images)


def read_pixels(image: ImageInput, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return an image as RGB, uint8 [3, h, w], on the CPU.

    Files are turned upright as their EXIF orientation says; the pixels of everything else are taken as they lie, so
    that boxes fit them. Grey becomes RGB, transparency is dropped, 16 bits become 8.
    Raises UserError, which begins with `name`, for a file that cannot be read or has more than `max_pixels`, another
    dtype or another shape.
    """
    try:
        if isinstance(image, str | os.PathLike):
            return read_image(Path(image), max_pixels=max_pixels)
        if isinstance(image, Image.Image):
            image = _decode(image)
        if isinstance(image, np.ndarray | Tensor):
            return _rgb(image)
    except (BrokenImageError, UserError) as error:
        raise UserError(f"{name}: {error}") from None
    kinds = "a path, a PIL image, a uint8 array [h, w, 3] or a uint8 tensor [3, h, w]"
    raise UserError(f"{name} is a {type(image).__name__}, not {kinds}")


def _decode(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise UserError(f"a PIL image of mode {image.mode} has no known range; convert it to mode L or RGB")
    try:
        if image.mode.startswith("I;16"):
            return (np.asarray(image) >> 8).astype(np.uint8)
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow decodes here, and raises many types for damaged files
        raise UserError(f"the PIL image cannot be decoded ({error})") from None


def _rgb(pixels: np.ndarray | Tensor) -> Tensor:
    """Convert an array [h, w, channels], a tensor [channels, h, w], or either without channels."""
    kind, shape = "a tensor" if isinstance(pixels, Tensor) else "an array", tuple(pixels.shape)
    if pixels.dtype not in (np.uint8, torch.uint8):
        is_float = pixels.is_floating_point() if isinstance(pixels, Tensor) else pixels.dtype.kind == "f"
        remedy = f"(255 * image).round().{'to(torch' if isinstance(pixels, Tensor) else 'astype(np'}.uint8)"
        hint = f": {remedy} converts values in 0..1" if is_float else ""
        raise UserError(f"{kind} of {pixels.dtype}; images are uint8 in 0..255{hint}")
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(np.array(pixels))  # a copy: strides may be negative, memory read-only
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[0] not in CHANNELS:
        raise UserError(f"{kind} of shape {shape}; arrays are [h, w, 3], tensors [3, h, w]")
    if not pixels.numel():
        raise UserError(f"{kind} of shape {shape} has no pixels")
    return pixels[:3].expand(3, -1, -1).cpu()


def unlabelled_sample(pixels: Tensor, cfg: Config, image_id: int, path: str) -> Sample:
    """Return an image, uint8 [3, h, w], resized for inference and without ground truth."""
    resized, boxes, scale_factor = resize(pixels, torch.zeros(0, 4), cfg.inference.short_side, cfg.inference.long_side)
    target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64)}
    return Sample(resized, target, image_id, path, scale_factor)


def batches_of_one_size(samples: Iterable[Sample], batch_size: int, divisor: int) -> Iterator[list[Sample]]:
    """Yield batches of up to `batch_size` samples that pad to the same size: no image depends on its neighbours.

    Samples of one size keep their order. When too many samples wait, the largest batch is yielded before it is full.
    """
    waiting: dict[Size, list[Sample]] = defaultdict(list)
    for sample in samples:
        size = padded_size([sample.image.shape[1:]], divisor)
        waiting[size].append(sample)
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) == MAX_WAITING_BATCHES * batch_size:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()
