"""Inputs of the benchmarks of the loss: head outputs as in training, and boxes with sizes spread as in COCO."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.points import STRIDES
from dwtriton.core.targets import PackedTargets, pack_targets

LOGITS = {
    "start": (-4.6, 1.0),
    "hostile": (-3.0, 1.0),
    "trained": (-7.0, 1.5),
}  # mean and deviation; a focal prior first
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
SIDES = (10, 600)  # pixels


class Size(NamedTuple):
    """Size of the images in pixels, number of classes, and strides of the levels."""

    height: int = 800
    width: int = 1344
    classes: int = 80
    strides: tuple[int, ...] = STRIDES

    def levels(self) -> list[tuple[int, int]]:
        """Return height and width of each level in cells."""
        return [(-(-self.height // stride), -(-self.width // stride)) for stride in self.strides]

    def points(self) -> int:
        """Return the number of points of an image."""
        return sum(height * width for height, width in self.levels())


class Case(NamedTuple):
    """Arguments of the loss; the targets as a list and packed."""

    inputs: list[list[Tensor]]  # class logits, distances, objectness, each over the levels: leaves
    targets: list[dict[str, Tensor]]
    packed: PackedTargets
    strides: tuple[int, ...] = STRIDES

    def leaves(self) -> list[Tensor]:
        """Return the tensors that get a gradient."""
        return [level for kind in self.inputs for level in kind]


def make_case(
    size: Size,
    batch: int,
    boxes: int | Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    logits: str = "start",
    layout: str = "channels_last",
    sides: tuple[int, int] = SIDES,
) -> Case:
    """Return the same case each time: logits of `dtype`, distances in float32, as the detector's head gives them.

    `boxes` are as many in each image, or the number for each; `logits` is a key of LOGITS, `layout` one of LAYOUTS.
    """
    counts = [boxes] * batch if isinstance(boxes, int) else boxes
    targets = make_targets(size, counts, sides)
    on_device = [{name: tensor.to(device) for name, tensor in target.items()} for target in targets]
    inputs = make_inputs(size, batch, dtype, device, logits, layout)
    return Case(inputs, on_device, pack_targets(targets, device), size.strides)


def make_inputs(
    size: Size, batch: int, dtype: torch.dtype, device: torch.device, logits: str, layout: str
) -> list[list[Tensor]]:
    """Return class logits [B, C, H, W], distances [B, 4, H, W] and objectness [B, 1, H, W], each over the levels."""
    generator = torch.Generator(device).manual_seed(batch)
    mean, deviation = LOGITS[logits]

    def level(channels: int, cells: tuple[int, int]) -> Tensor:
        noise = torch.randn(batch, channels, *cells, generator=generator, device=device)
        return noise.contiguous(memory_format=LAYOUTS[layout])

    kinds = [
        [(level(size.classes, cells) * deviation + mean).to(dtype) for cells in size.levels()],
        [level(4, cells).exp() * 2 * stride for cells, stride in zip(size.levels(), size.strides)],
        [level(1, cells).to(dtype) for cells in size.levels()],
    ]
    return [[tensor.requires_grad_() for tensor in kind] for kind in kinds]


def make_targets(size: Size, counts: Sequence[int], sides: tuple[int, int] = SIDES) -> list[dict[str, Tensor]]:
    """Return targets on the CPU, `counts[i]` boxes in image i; sides are log-uniform, so many are small."""
    generator = torch.Generator().manual_seed(max(counts))
    limit = torch.tensor([size.width, size.height])
    least, most = sides
    targets = []
    for boxes in counts:
        side = torch.minimum(least * (most / least) ** torch.rand(boxes, 2, generator=generator), limit)
        corner = torch.rand(boxes, 2, generator=generator) * (limit - side)
        labels = torch.randint(size.classes, (boxes,), generator=generator)
        targets.append({"boxes": torch.cat((corner, corner + side), 1), "labels": labels})
    return targets
