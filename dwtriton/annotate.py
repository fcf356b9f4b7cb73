"""Boxes with their names drawn into images."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#7f6fc9")  # by label, in turn
READABLE = 640  # pixels
FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def draw_boxes(
    image: Tensor, boxes: Tensor, labels: Sequence[int], texts: Sequence[str], enlarge_to: int = READABLE
) -> Tensor:
    """A copy of the image, uint8 [3, H, W], with boxes [N, 4] xyxy in its pixels; the first ones are drawn on top.

    A small image is enlarged by a whole factor, its short side up to `enlarge_to` pixels, so that texts leave something
    to be seen; lines and letters grow with it. A label has the same colour everywhere.
    """
    factor = max(1, enlarge_to // min(image.shape[1:]))
    image = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    if not len(boxes):
        return image
    height, width = image.shape[1:]
    side = min(height, width)
    limits = torch.tensor([width - 1, height - 1] * 2)
    on_top = range(len(boxes) - 1, -1, -1)
    return draw_bounding_boxes(
        image,
        (boxes.cpu() * factor).round().clamp(min=0).minimum(limits)[list(on_top)],
        labels=[texts[i] for i in on_top],
        colors=[COLOURS[labels[i] % len(COLOURS)] for i in on_top],
        width=max(1, side // 200),
        font=FONT,
        font_size=max(9, side // 40),
        label_colors="white",
        fill_labels=True,
    )
