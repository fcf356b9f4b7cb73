"""A loader written with torchvision alone: CocoDetection, PIL images, transforms v2, padded batches."""

import contextlib
import io
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from dwtriton.config.schema import DataConfig
from dwtriton.data.images import resized_size


def plain_steps(cfg: DataConfig, boxes: torch.Tensor) -> dict[str, Callable]:
    """Return the steps from a path to image and boxes, xyxy [G, 4], and from these to the input of a network."""
    mean, std = ([value / 255 for value in values] for values in (cfg.mean, cfg.std))

    def decode(path: str) -> tuple[Image.Image, BoundingBoxes]:
        image = Image.open(path).convert("RGB")  # as CocoDetection does
        return image, BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width))

    def resize(image: Image.Image, target: BoundingBoxes | dict) -> tuple:
        size = resized_size(image.height, image.width, cfg.short_side[0], cfg.long_side)
        return v2.Resize(size)(image, target)  # given a short side alone, it would round the long one down

    return {
        "decode": decode,
        "resize": resize,
        "flip": v2.RandomHorizontalFlip(cfg.flip),
        "normalise": v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]),
    }


def plain_dataset(cfg: DataConfig) -> Dataset:
    """Return a data set of (image, float32 [3, h, w]; target), in the order of the image ids."""
    _, *transforms = plain_steps(cfg, torch.empty(0, 4)).values()
    files = cfg.root / cfg.train_images, cfg.root / cfg.train_annotations
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        return wrap_dataset_for_transforms_v2(CocoDetection(*files, transforms=v2.Compose(transforms)))


def plain_collate(items: list[tuple], size_divisor: int) -> tuple[torch.Tensor, list[dict]]:
    """Pad images to the largest of the batch and to multiples of `size_divisor`."""
    images, targets = zip(*items)
    height, width = (-(-max(image.shape[axis] for image in images) // size_divisor) * size_divisor for axis in (1, 2))
    padded = [v2.functional.pad(image, [0, 0, width - image.shape[2], height - image.shape[1]]) for image in images]
    return default_collate(padded), list(targets)


def plain_loader(dataset: Dataset, cfg: DataConfig, batches: list[list[int]]) -> DataLoader:
    """Return a loader of the given batches of indices."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.workers,
        collate_fn=partial(plain_collate, size_divisor=cfg.size_divisor),
        persistent_workers=cfg.workers > 0,
    )
