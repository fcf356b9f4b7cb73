"""Batches: which images go together, how they become one tensor, and the loaders of training and evaluation."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from dwtriton.config import Config
from dwtriton.data.coco import CocoDataset, Example


class OrientedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of `(index, seed)` whose images are all landscape or all not, in an order drawn from (seed, epoch).

    An epoch has every index at least once; the last batch of an orientation is filled up from that orientation's
    beginning. A sample's seed depends on (seed, epoch, position) alone, not on workers nor on where a run resumed.
    """

    def __init__(self, landscape: Sequence[bool] | np.ndarray, batch_size: int, seed: int) -> None:
        self.groups = [np.flatnonzero(np.asarray(landscape) == wide) for wide in (False, True)]
        self.batch_size = batch_size
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch to iterate, and the batch of it to start with."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever it is started."""
        return sum(-(-len(group) // self.batch_size) for group in self.groups)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = rng.permutation(np.concatenate([self._batches(group, rng) for group in self.groups]))  # [N, B]
        seeds = rng.integers(2**63, size=batches.shape)
        for indices, batch_seeds in zip(batches[self.start :].tolist(), seeds[self.start :].tolist()):
            yield list(zip(indices, batch_seeds))

    def _batches(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count = -(-len(group) // self.batch_size)
        return np.resize(rng.permutation(group), (count, self.batch_size))  # repeats from the beginning to fill up


@dataclass
class Batch:
    """Images of one batch. A batch of evaluation has no image at all if none of its files could be read."""

    images: torch.Tensor  # float32 [B, 3, H, W], normalised, zero-padded
    targets: list[dict[str, torch.Tensor]]  # boxes float32 [G, 4] xyxy network pixels, labels int64 [G], iscrowd [G]
    image_ids: list[int]
    image_sizes: list[tuple[int, int]]  # (h, w) before padding
    scale_factors: list[tuple[float, float]]  # (sx, sy), network pixels per original pixel
    paths: list[str]
    broken: list[str]  # "PATH: reason" of files that could not be read: replaced in training, left out in evaluation

    def __len__(self) -> int:
        return len(self.image_ids)

    def pin_memory(self) -> "Batch":
        """The batch with its images in page-locked memory; DataLoader calls this."""
        return replace(self, images=self.images.pin_memory())


def collate(examples: list[Example], num_classes: int, size_divisor: int) -> Batch:
    """Pad to multiples of `size_divisor`, then to the largest of the batch, and check the targets.

    Raises ValueError, naming the image, for labels outside 0..num_classes-1 and boxes not finite or inverted.
    """
    readable = [example for example in examples if example.image is not None]
    for example in readable:
        _check_target(example, num_classes)
    sizes = [tuple(example.image.shape[-2:]) for example in readable]
    height, width = (
        -(-max((size[axis] for size in sizes), default=1) // size_divisor) * size_divisor for axis in (0, 1)
    )
    images = torch.zeros(len(readable), 3, height, width)
    for padded, example, (h, w) in zip(images, readable, sizes):
        padded[:, :h, :w] = example.image
    return Batch(
        images=images,
        targets=[example.target for example in readable],
        image_ids=[example.image_id for example in readable],
        image_sizes=sizes,
        scale_factors=[example.scale_factor for example in readable],
        paths=[example.path for example in readable],
        broken=[line for example in examples for line in example.broken],
    )


def train_loader(dataset: CocoDataset, cfg: Config) -> DataLoader:
    """Endlessly reusable loader of training batches; call `loader.batch_sampler.set_epoch` before each epoch."""
    return _loader(dataset, cfg, OrientedBatchSampler(dataset.landscape, cfg.data.batch_size, cfg.train.seed))


def eval_loader(dataset: CocoDataset, cfg: Config) -> DataLoader:
    """Loader of every image once, in the order of aspect ratios, which saves padding."""
    order = np.argsort(dataset.aspects, kind="stable").tolist()
    batches = [order[i : i + cfg.data.batch_size] for i in range(0, len(order), cfg.data.batch_size)]
    return _loader(dataset, cfg, batches)


def _loader(dataset: CocoDataset, cfg: Config, batches: OrientedBatchSampler | list[list[int]]) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.data.workers,
        collate_fn=partial(collate, num_classes=len(dataset.class_names), size_divisor=cfg.data.size_divisor),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=cfg.data.workers > 0,
        worker_init_fn=_leave_interrupts_to_parent,
        generator=torch.Generator(),  # its own, so that loading draws nothing from the generator of the run
    )


def _leave_interrupts_to_parent(_worker_id: int) -> None:
    """Ctrl-C reaches workers too: the main process finishes its step and then ends them, by SIGTERM at the latest."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler of the run that forked this worker


def _check_target(example: Example, num_classes: int) -> None:
    boxes, labels = example.target["boxes"], example.target["labels"]
    bad_labels = (labels < 0) | (labels >= num_classes)
    bad_boxes = ~boxes.isfinite().all(-1) | (boxes[:, :2] > boxes[:, 2:]).any(-1)
    if bad_labels.any():
        index = int(bad_labels.nonzero()[0])
        problem = f"label {int(labels[index])} of box {index} is outside 0..{num_classes - 1}"
    elif bad_boxes.any():
        index = int(bad_boxes.nonzero()[0])
        problem = f"box {index} is {boxes[index].tolist()}; it must be finite with x1 <= x2 and y1 <= y2"
    else:
        return
    raise ValueError(f"image {example.image_id} ({example.path}): {problem}")
