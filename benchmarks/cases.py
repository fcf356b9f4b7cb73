"""Inputs of the benchmarks of the loss: head outputs as in training, and boxes with sizes spread as in COCO."""

from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.points import STRIDES
from dwtriton.core.targets import PackedTargets, pack_targets


class Size(NamedTuple):
    """Size of the images in pixels, and number of classes."""

    height: int = 800
    width: int = 1344
    classes: int = 80

    def levels(self) -> list[tuple[int, int]]:
        """Return height and width of each level in cells."""
        return [(-(-self.height // stride), -(-self.width // stride)) for stride in STRIDES]

    def points(self) -> int:
        """Return the number of points of an image."""
        return sum(height * width for height, width in self.levels())


class Case(NamedTuple):
    """Arguments of the loss; the targets as a list and packed."""

    inputs: list[list[Tensor]]  # class logits, distances, objectness, each over the levels: leaves in channels_last
    targets: list[dict[str, Tensor]]
    packed: PackedTargets

    def leaves(self) -> list[Tensor]:
        """Return the tensors that get a gradient."""
        return [level for kind in self.inputs for level in kind]


def make_case(size: Size, batch: int, boxes: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Return the same case each time: logits of `dtype`, distances in float32, as the detector's head gives them."""
    targets = make_targets(size, batch, boxes)
    on_device = [{name: tensor.to(device) for name, tensor in target.items()} for target in targets]
    return Case(make_inputs(size, batch, dtype, device), on_device, pack_targets(targets, device))


def make_inputs(size: Size, batch: int, dtype: torch.dtype, device: torch.device) -> list[list[Tensor]]:
    """Return class logits [B, C, H, W], distances [B, 4, H, W] and objectness [B, 1, H, W], each over the levels."""
    generator = torch.Generator(device).manual_seed(batch)

    def level(channels: int, cells: tuple[int, int]) -> Tensor:
        noise = torch.randn(batch, channels, *cells, generator=generator, device=device)
        return noise.contiguous(memory_format=torch.channels_last)

    kinds = [
        [(level(size.classes, cells) - 4.6).to(dtype) for cells in size.levels()],  # as a focal prior of 0.01
        [level(4, cells).exp() * 2 * stride for cells, stride in zip(size.levels(), STRIDES)],
        [level(1, cells).to(dtype) for cells in size.levels()],
    ]
    return [[tensor.requires_grad_() for tensor in kind] for kind in kinds]


def make_targets(size: Size, batch: int, boxes: int) -> list[dict[str, Tensor]]:
    """Return targets on the CPU, `boxes` an image; sides are log-uniform in 10 to 600 pixels, so many are small."""
    generator = torch.Generator().manual_seed(boxes)
    limit = torch.tensor([size.width, size.height])
    targets = []
    for _ in range(batch):
        side = torch.minimum(10 * 60 ** torch.rand(boxes, 2, generator=generator), limit)
        corner = torch.rand(boxes, 2, generator=generator) * (limit - side)
        labels = torch.randint(size.classes, (boxes,), generator=generator)
        targets.append({"boxes": torch.cat((corner, corner + side), 1), "labels": labels})
    return targets
