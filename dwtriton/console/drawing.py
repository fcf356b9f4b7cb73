"""Drawing of boxes and their names into images."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import ImageColor, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from dwtriton.console.fonts import drawable

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#7f6fc9")
MIN_SHORT_SIDE = 640  # pixels; smaller images are enlarged
MAX_LONG_SIDE = 2560  # pixels, of an enlarged image
MAX_DARK = 140  # of 255: text on a lighter colour is black


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Sequence[int],
    texts: Sequence[str] = (),
    enlarge_to: int = MIN_SHORT_SIDE,
    colours: Sequence[str] = COLOURS,
) -> Tensor:
    """Return a copy of `image` (uint8 [3, H, W]) with `boxes` ([N, 4] xyxy, in its pixels); the first ones on top.

    Small images are enlarged by an integer factor, up to a short side of `enlarge_to` pixels (0: never), so that texts
    do not cover them; lines and letters scale with the image. Label i has the colour `colours[i % len(colours)]`. Each
    text is one line above its box, or inside it at the upper border, and is shifted left where it would be cut off; it
    may be in any script (`fonts.drawable`).
    """
    sides = image.shape[1:]
    factor = max(1, min(enlarge_to // min(sides), MAX_LONG_SIDE // max(sides)))
    image = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    height, width = image.shape[1:]
    limits = torch.tensor([width - 1, height - 1] * 2)
    corners = (boxes.cpu() * factor).round().clamp(min=0).minimum(limits).long().tolist()

    picture = to_pil_image(image)
    draw = ImageDraw.Draw(picture)
    line = max(3, min(height, width) // 200)
    letters = max(11, min(height, width) // 40)
    box_colours = [colours[label % len(colours)] for label in labels]
    for box, colour in reversed(list(zip(corners, box_colours))):
        draw.rectangle(box, outline=colour, width=line)
    for (x, y, _, _), colour, text in reversed(list(zip(corners, box_colours, texts))):  # texts over lines
        text, font_file = drawable(" ".join(text.split()))
        font = _font(font_file, letters)
        text_height = sum(font.getmetrics())
        text_width = round(font.getlength(text)) + 4
        left = max(0, min(x, width - text_width))
        top = min(y - text_height + 1 if y >= text_height else y, height - text_height)
        draw.rectangle((left, top, left + text_width - 1, top + text_height - 1), fill=colour)
        light = ImageColor.getcolor(colour, "L") > MAX_DARK
        draw.text((left + 2, top), text, fill="black" if light else "white", font=font)
    return pil_to_tensor(picture)


@cache
def _font(file: Path, letters: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, letters)
