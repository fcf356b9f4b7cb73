"""Resizing and flipping of decoded images with their boxes (docs/recipe.md#data).

Pixels stay bytes until their batch is on its device: model/pixels.py normalises them.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dwtriton.config.schema import DataConfig


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
