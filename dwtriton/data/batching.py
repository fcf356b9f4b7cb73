"""Batches: which images go together, how they become one tensor, and the loaders of training and evaluation."""

import atexit
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Sampler, default_collate

from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.data.buckets import Size, choose_buckets, fits, padded_size, smallest_bucket
from dwtriton.data.coco import CocoDataset, Sample, SampleRequest

LINGER = 60  # seconds that a worker survives SIGTERM while the main process saves its state


class OrientedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of `(index, seed)` whose images are all landscape or all not, in an order drawn from (seed, epoch).

    An epoch has every index at least once; the last batch of an orientation is filled up from that orientation's
    beginning. A request's seed depends on (seed, epoch, position) alone, not on workers nor on where a run resumed.

    Of each batch, process `rank` of `world_size` gets its own part, as `accumulate` batches one after another; the
    parts of all make up the batch, whatever their number. With `padded_size`, the (h, w) that a whole batch is padded
    to, requests are `(index, seed, (h, w))`, and all parts of a batch have one size.
    Raises UserError if the batch cannot be shared out so.
    """

    def __init__(
        self,
        landscape: Sequence[bool] | np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        padded_size: Callable[[list[SampleRequest]], Size] | None = None,
    ) -> None:
        if batch_size % (world_size * accumulate):
            raise UserError(
                f"data.batch_size = {batch_size} (images in one optimiser step, over all processes) does not divide "
                f"into {world_size} processes x train.accumulate = {accumulate}: change one of the three"
            )
        self.groups = [np.flatnonzero(np.asarray(landscape) == wide) for wide in (False, True)]
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.padded_size = padded_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch to iterate, and the optimiser step of it to start with."""
        self.epoch = epoch
        self.start = start

    @property
    def steps(self) -> int:
        """Optimiser steps in a whole epoch, wherever it is started."""
        return sum(-(-len(group) // self.batch_size) for group in self.groups)

    def __len__(self) -> int:
        """Batches of this process in a whole epoch, wherever it is started."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[tuple]]:
        size = self.batch_size // (self.world_size * self.accumulate)
        for batch in self.whole_batches():
            suffix = () if self.padded_size is None else (self.padded_size(batch),)
            for first in range(self.rank * size, self.batch_size, self.world_size * size):
                yield [(request.index, request.seed, *suffix) for request in batch[first : first + size]]

    def whole_batches(self) -> Iterator[list[SampleRequest]]:
        """The batches of the epoch from its start on, of all processes together."""
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = rng.permutation(np.concatenate([self._batches(group, rng) for group in self.groups]))  # [N, B]
        seeds = rng.integers(2**63, size=batches.shape)
        for batch in np.stack([batches, seeds], -1)[self.start :]:  # [B, 2]
            yield [SampleRequest(index, seed) for index, seed in batch.tolist()]

    def _batches(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count = -(-len(group) // self.batch_size)
        return np.resize(rng.permutation(group), (count, self.batch_size))  # repeats from the beginning to fill up


@dataclass
class Batch:
    """Images of one batch. A batch of evaluation has no image at all if none of its files could be read."""

    images: torch.Tensor  # uint8 [B, 3, H, W], channels_last, zero-padded; PixelDetector normalises them
    targets: list[dict[str, torch.Tensor]]  # boxes float32 [G, 4] xyxy network pixels, labels int64 [G], iscrowd [G]
    image_ids: list[int]
    image_sizes: list[tuple[int, int]]  # (h, w) before padding
    scale_factors: list[tuple[float, float]]  # (sx, sy), network pixels per original pixel
    paths: list[str]
    broken: list[str]  # "PATH: reason" of files that could not be read: replaced in training, left out in evaluation

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getstate__(self) -> dict[str, Any]:
        """For the way out of a worker: targets as bytes, since each tensor would take a file in shared memory."""
        targets = [{name: tensor.numpy() for name, tensor in target.items()} for target in self.targets]
        return {**self.__dict__, "targets": targets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        targets = [{name: torch.from_numpy(array) for name, array in target.items()} for target in state["targets"]]
        self.__dict__.update(state, targets=targets)

    def pin_memory(self) -> "Batch":
        """The batch with its images in page-locked memory; DataLoader calls this."""
        return replace(self, images=self.images.pin_memory())


def collate(samples: list[Sample], num_classes: int, size_divisor: int) -> Batch:
    """Pad to the size that the requests asked for, else to the least multiples of `size_divisor`; check the targets.

    Raises ValueError, naming the image, for labels outside 0..num_classes-1 and boxes not finite or inverted.
    """
    readable = [sample for sample in samples if sample.image is not None]
    for sample in readable:
        _check_target(sample, num_classes)
    sizes = [tuple(sample.image.shape[-2:]) for sample in readable]
    padded = samples[0].padded or padded_size([*sizes, (1, 1)], size_divisor)
    return Batch(
        images=_stack([sample.image for sample in readable], *padded),
        targets=[sample.target for sample in readable],
        image_ids=[sample.image_id for sample in readable],
        image_sizes=sizes,
        scale_factors=[sample.scale_factor for sample in readable],
        paths=[sample.path for sample in readable],
        broken=[line for sample in samples for line in sample.broken],
    )


def _stack(images: list[torch.Tensor], height: int, width: int) -> torch.Tensor:
    """Images [3, h, w] padded to a batch [B, 3, H, W] in channels_last, in a worker straight into shared memory."""
    if not images:
        return torch.zeros(0, 3, height, width, dtype=torch.uint8)
    padded = [pad(i.permute(1, 2, 0), (0, 0, 0, width - i.shape[2], 0, height - i.shape[1])) for i in images]
    return default_collate(padded).permute(0, 3, 1, 2)


def train_loader(dataset: CocoDataset, cfg: Config, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Endlessly reusable loader of a process's training batches; call `loader.batch_sampler.set_epoch` before an epoch.

    Raises UserError if the batch cannot be shared out.
    """
    buckets = training_buckets(dataset, cfg)
    sampler = OrientedBatchSampler(
        dataset.landscape,
        cfg.data.batch_size,
        cfg.train.seed,
        rank,
        world_size,
        cfg.train.accumulate,
        lambda requests: smallest_bucket(dataset.padded_size(requests), buckets),
    )
    return _loader(dataset, cfg, sampler, persistent_workers=cfg.data.workers > 0)


def training_buckets(dataset: CocoDataset, cfg: Config) -> list[Size]:
    """The (h, w) that training batches are padded to; none if every batch is padded as its own images need it.

    Where `data.buckets` is a number they are chosen for the batches of the first epoch (see `choose_buckets`).
    Raises UserError if the config's own leave out an image or are no multiples of `data.size_divisor`.
    """
    if cfg.data.buckets == 0:
        return []
    limits = dataset.largest_sizes()
    if isinstance(cfg.data.buckets, int):
        return choose_buckets(natural_sizes(dataset, cfg), limits, cfg.data.buckets)
    for bucket in cfg.data.buckets:
        if padded_size([bucket], cfg.data.size_divisor) != bucket:
            raise UserError(f"data.buckets: {bucket} is not a multiple of data.size_divisor = {cfg.data.size_divisor}")
    for limit in limits:
        if not any(fits(limit, bucket) for bucket in cfg.data.buckets):
            raise UserError(
                f"data.buckets: none of {list(cfg.data.buckets)} holds {limit}, a (height, width) that batches of "
                f"this data can have: add it, or set data.buckets to a number and let them be chosen"
            )
    return list(cfg.data.buckets)


def natural_sizes(dataset: CocoDataset, cfg: Config) -> Counter[Size]:
    """How often the batches of the first epoch have which (h, w), without buckets."""
    sampler = OrientedBatchSampler(dataset.landscape, cfg.data.batch_size, cfg.train.seed)
    return Counter(map(dataset.padded_size, sampler.whole_batches()))


def eval_loader(dataset: CocoDataset, cfg: Config, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Loader of every image once, over all processes; those of one batch pad to one size.

    So no image is padded beyond its own next multiple of `data.size_divisor`, and what is detected in it does not
    depend on which others are in its batch (the official test path has one image in a batch).
    """
    order = np.argsort(dataset.aspects, kind="stable").tolist()
    size = max(1, cfg.data.batch_size // world_size)
    batches = [
        same[i : i + size]
        for same in (
            list(group) for _, group in groupby(order, lambda index: dataset.padded_size([SampleRequest(index)]))
        )
        for i in range(0, len(same), size)
    ]
    return _loader(dataset, cfg, batches[rank::world_size])


def _loader(
    dataset: CocoDataset,
    cfg: Config,
    batches: OrientedBatchSampler | list[list[int]],
    persistent_workers: bool = False,
) -> DataLoader:
    main_ends = multiprocessing.Event()
    atexit.register(main_ends.set)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.data.workers,
        collate_fn=partial(collate, num_classes=len(dataset.class_names), size_divisor=cfg.data.size_divisor),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=persistent_workers,
        worker_init_fn=partial(_leave_signals_to_parent, main_ends),
        generator=torch.Generator(),  # its own, so that loading draws nothing from the generator of the run
    )


def _leave_signals_to_parent(main_ends: Event, _worker_id: int) -> None:
    """Signals to the whole job are for the main process, which saves its state and then ends its workers by SIGTERM.

    Ctrl-C reaches a process group, so each worker is one of its own. SIGTERM may reach every process, and a worker that
    dies of it before the main process ends would take that with it.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0) if main_ends.is_set() else signal.alarm(LINGER))


def _check_target(sample: Sample, num_classes: int) -> None:
    boxes, labels = sample.target["boxes"], sample.target["labels"]
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
    raise ValueError(f"image {sample.image_id} ({sample.path}): {problem}")
