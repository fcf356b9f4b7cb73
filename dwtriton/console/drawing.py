"""Boxes with their names drawn into images."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from PIL import ImageColor, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#7f6fc9")  # by label, in turn
READABLE = 640  # pixels
LONGEST = 2560  # pixels; a long side is enlarged no further
FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
LIGHT = 140  # of 255: on a colour lighter than this, letters are black


def draw_boxes(
    image: Tensor, boxes: Tensor, labels: Sequence[int], texts: Sequence[str], enlarge_to: int = READABLE
) -> Tensor:
    """A copy of the image, uint8 [3, H, W], with boxes [N, 4] xyxy in its pixels; the first ones are drawn on top.

    A small image is enlarged by a whole factor, its short side up to `enlarge_to` pixels, so that texts leave something
    to be seen; lines and letters grow with it. A label has the same colour everywhere. A text stands in one line on its
    box, or inside it where the image ends, and is moved left where it would be cut off.
    """
    sides = image.shape[1:]
    factor = max(1, min(enlarge_to // min(sides), LONGEST // max(sides)))
    image = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    height, width = image.shape[1:]
    limits = torch.tensor([width - 1, height - 1] * 2)
    corners = (boxes.cpu() * factor).round().clamp(min=0).minimum(limits).long().tolist()

    picture = to_pil_image(image)
    draw = ImageDraw.Draw(picture)
    line = max(1, min(height, width) // 200)
    font = ImageFont.truetype(FONT, max(9, min(height, width) // 40))
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    for box, colour in reversed(list(zip(corners, colours))):
        draw.rectangle(box, outline=colour, width=line)
    text_height = sum(font.getmetrics())
    for (x, y, _, _), colour, text in reversed(list(zip(corners, colours, texts))):  # no line crosses a text
        text = " ".join(text.split())
        text_width = round(font.getlength(text)) + 4
        left = max(0, min(x, width - text_width))
        top = min(y - text_height + 1 if y >= text_height else y, height - text_height)
        draw.rectangle((left, top, left + text_width - 1, top + text_height - 1), fill=colour)
        light = ImageColor.getcolor(colour, "L") > LIGHT
        draw.text((left + 2, top), text, fill="black" if light else "white", font=font)
    return pil_to_tensor(picture)
