"""Batches: how samples become one tensor, and what is known of its images."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import pad
from torch.utils.data import default_collate

from dwtriton.core.targets import check_values, concatenate_targets
from dwtriton.data.buckets import padded_size
from dwtriton.data.coco import Sample


@dataclass
class Batch:
    """Images of one batch with their targets. In evaluation it is empty if none of its files could be read."""

    images: torch.Tensor  # uint8 [B, 3, H, W], channels_last, zero-padded; PixelDetector normalises them
    targets: list[dict[str, torch.Tensor]]  # those of `Sample`
    image_ids: list[int]
    image_sizes: list[tuple[int, int]]  # (h, w) before padding
    scale_factors: list[tuple[float, float]]  # (sx, sy), network pixels per original pixel
    paths: list[str]
    broken: list[str]  # "PATH: reason" of files that could not be read: replaced in training, left out in evaluation

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getstate__(self) -> dict[str, Any]:
        """State for the way out of a worker: targets as bytes, since each tensor would take a shared-memory file."""
        targets = [{name: tensor.numpy() for name, tensor in target.items()} for target in self.targets]
        return {**self.__dict__, "targets": targets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        targets = [{name: torch.from_numpy(array) for name, array in target.items()} for target in state["targets"]]
        self.__dict__.update(state, targets=targets)

    def pin_memory(self) -> "Batch":
        """Return the batch with its images in pinned memory; DataLoader calls this."""
        return replace(self, images=self.images.pin_memory())


def collate(samples: list[Sample], num_classes: int, size_divisor: int) -> Batch:
    """Pad images to the (h, w) that their requests state, else to the least multiples of `size_divisor`.

    Raises ValueError, naming the image, for labels outside 0..num_classes-1, boxes that are not finite or inverted, and
    weights that are not finite or negative.
    """
    readable = [sample for sample in samples if sample.image is not None]
    for sample in readable:
        try:
            check_values(concatenate_targets([sample.target]), num_classes)
        except ValueError as error:
            problem = str(error).removeprefix("targets, image 0, ")
            raise ValueError(f"image {sample.image_id} ({sample.path}): {problem}") from None
    sizes = [tuple(sample.image.shape[-2:]) for sample in readable]
    height, width = samples[0].padded or padded_size([*sizes, (1, 1)], size_divisor)
    images = [pad(s.image.permute(1, 2, 0), (0, 0, 0, width - w, 0, height - h)) for s, (h, w) in zip(readable, sizes)]
    stacked = default_collate(images) if images else torch.zeros(0, height, width, 3, dtype=torch.uint8)
    return Batch(  # `default_collate` stacks in shared memory where it runs in a worker
        images=stacked.permute(0, 3, 1, 2),
        targets=[sample.target for sample in readable],
        image_ids=[sample.image_id for sample in readable],
        image_sizes=sizes,
        scale_factors=[sample.scale_factor for sample in readable],
        paths=[sample.path for sample in readable],
        broken=[line for sample in samples for line in sample.broken],
    )
