"""Which images form a batch, on which rank and in which micro-batch, and the loaders of training and evaluation."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.data.batch import collate
from dwtriton.data.buckets import Size, area, choose_buckets, fits, padded_size, smallest_bucket
from dwtriton.data.coco import CocoDataset, SampleRequest
from dwtriton.data.workers import choose_workers, outlive_sigterm

FAST_GPU = 300 * 800 * 1088  # pixels/s: 300 images/s of COCO at r50_1x, the aim for an H100 (docs/performance.md)
TIMED_IMAGES = 8  # for data.workers = "auto"
WINDOW = 16  # batches whose images are sorted by aspect together: few enough that an epoch hardly repeats another

PIXEL_BYTES = {"cuda": 3, "cpu": 3 + 12 + 64}  # in main memory, at least: as bytes, in float32, after the first layer


class OrientedBatchSampler(Sampler[list[SampleRequest]]):
    """Micro-batches of one rank, in an order drawn from (seed, epoch).

    The images of a batch are either all landscape or all not. An epoch has every index at least once; the last batch of
    an orientation is filled up from that orientation's beginning. The seed of a request depends on (seed, epoch,
    position) alone: not on workers, nor on where a run was resumed.
    With `aspects` (height / width of each image) the images of a batch are also of like aspect, and share one scale.

    Each batch is split over `world_size` ranks and `accumulate` micro-batches; together they always form the same
    batch. `padded_size` gives the (h, w) that all parts of a batch are padded to.
    Raises UserError if the batch does not divide into equal parts.
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
        aspects: np.ndarray | None = None,
    ) -> None:
        if batch_size % (world_size * accumulate):
            raise UserError(
                f"data.batch_size = {batch_size} (images in one optimiser step, over all ranks) does not divide "
                f"into {world_size} ranks x train.accumulate = {accumulate}: change one of the three"
            )
        self.groups = [np.flatnonzero(np.asarray(landscape) == wide) for wide in (False, True)]
        self.batch_size, self.seed, self.padded_size = batch_size, seed, padded_size
        self.rank, self.world_size, self.accumulate, self.aspects = rank, world_size, accumulate, aspects
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch to iterate, and its optimiser step to start with."""
        self.epoch, self.start = epoch, start

    @property
    def steps(self) -> int:
        """Optimiser steps in a whole epoch, wherever it is started."""
        return sum(-(-len(group) // self.batch_size) for group in self.groups)

    def __len__(self) -> int:
        """Micro-batches of this rank in a whole epoch, wherever it is started."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        size = self.batch_size // (self.world_size * self.accumulate)
        for batch in self.global_batches():
            if self.padded_size is not None:
                padded = self.padded_size(batch)
                batch = [request._replace(padded=padded) for request in batch]
            for begin in range(self.rank * size, self.batch_size, self.world_size * size):
                yield batch[begin : begin + size]

    def global_batches(self) -> Iterator[list[SampleRequest]]:
        """Batches of all ranks together, from the chosen step of the epoch on."""
        rng = np.random.default_rng((self.seed, self.epoch))
        orders = [self._by_aspect(rng.permutation(group)) for group in self.groups]
        filled = [np.resize(order, -(-len(order) // self.batch_size) * self.batch_size) for order in orders]  # repeats
        batches = rng.permutation(np.concatenate(filled).reshape(-1, self.batch_size))  # [N, B]
        seeds = rng.integers(2**63, size=batches.shape)  # [N, B]
        scale_seeds = [None] * len(batches) if self.aspects is None else rng.integers(2**63, size=len(batches)).tolist()
        for batch, scale_seed in zip(np.stack([batches, seeds], -1)[self.start :], scale_seeds[self.start :]):  # [B, 2]
            yield [SampleRequest(index, seed, scale_seed=scale_seed) for index, seed in batch.tolist()]

    def _by_aspect(self, order: np.ndarray) -> np.ndarray:
        """Sort the images of each WINDOW batches by aspect, if that is known."""
        if self.aspects is None:
            return order
        step = WINDOW * self.batch_size
        parts = [order[begin : begin + step] for begin in range(0, len(order), step)]
        return np.concatenate([part[np.argsort(self.aspects[part], kind="stable")] for part in parts] or [order])


def training_sampler(
    dataset: CocoDataset,
    cfg: Config,
    rank: int = 0,
    world_size: int = 1,
    padded_size: Callable[[list[SampleRequest]], Size] | None = None,
) -> OrientedBatchSampler:
    """Sampler of a rank's micro-batches. Raises UserError if the batch does not divide into equal micro-batches."""
    aspects = dataset.aspects if cfg.data.scale_per == "batch" else None
    settings = cfg.data.batch_size, cfg.train.seed, rank, world_size, cfg.train.accumulate
    return OrientedBatchSampler(dataset.landscape, *settings, padded_size, aspects)


def train_loader(dataset: CocoDataset, cfg: Config, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Loader of a rank's micro-batches, for any number of epochs; `loader.batch_sampler.set_epoch` chooses one.

    Raises UserError if the batch does not divide into equal micro-batches, or cannot fit into the machine's memory.
    """
    buckets = training_buckets(dataset, cfg)
    images = cfg.data.batch_size // (world_size * cfg.train.accumulate)
    _check_memory(images, buckets or dataset.largest_sizes(), "data.batch_size, data.short_side or data.long_side")

    def bucket(requests: list[SampleRequest]) -> Size:
        return smallest_bucket(dataset.padded_size(requests), buckets)

    sampler = training_sampler(dataset, cfg, rank, world_size, bucket)
    return _loader(dataset, cfg, sampler, persistent=True)


def training_buckets(dataset: CocoDataset, cfg: Config, unbucketed: Counter[Size] | None = None) -> list[Size]:
    """The (h, w) that training batches are padded to; none if each batch is padded as its own images need it.

    If `data.buckets` is a number, they are chosen for the batches of the first epoch (see `choose_buckets`):
    `unbucketed`, by default `unbucketed_sizes(dataset, cfg)`.
    Raises UserError if buckets of the config are not multiples of `data.size_divisor` or do not hold all images.
    """
    if cfg.data.buckets == 0:
        return []
    limits = dataset.largest_sizes()
    if isinstance(cfg.data.buckets, int):
        return choose_buckets(unbucketed or unbucketed_sizes(dataset, cfg), limits, cfg.data.buckets)
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


def unbucketed_sizes(dataset: CocoDataset, cfg: Config) -> Counter[Size]:
    """Number of batches of the first epoch by the (h, w) they would have without buckets."""
    return Counter(map(dataset.padded_size, training_sampler(dataset, cfg).global_batches()))


def eval_loader(dataset: CocoDataset, cfg: Config, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Loader of a rank's part of the images; over all ranks each is loaded once.

    A batch holds images that pad to the same size. No image is padded beyond its own next multiple of
    `data.size_divisor`, so its detections do not depend on the others (the official test path has batches of one).
    Raises UserError if an image cannot fit into the machine's memory.
    """
    _check_memory(1, dataset.largest_sizes(), "inference.short_side or inference.long_side")
    order = np.argsort(dataset.aspects, kind="stable").tolist()
    by_size = [list(same) for _, same in groupby(order, lambda index: dataset.padded_size([SampleRequest(index)]))]
    size = max(1, cfg.data.batch_size // world_size)
    batches = [same[i : i + size] for same in by_size for i in range(0, len(same), size)]
    return _loader(dataset, cfg, batches[rank::world_size])


def _check_memory(images: int, sizes: Sequence[Size], keys: str) -> None:
    """Raise UserError, naming `keys`, if images of the largest of these (h, w) are certain to exceed the memory."""
    height, width = max(sizes, key=math.prod)
    needed = images * height * width * PIXEL_BYTES["cuda" if torch.cuda.is_available() else "cpu"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"{images} images of {height}x{width} in a batch take at least {needed / 1e9:.0f} GB, and this machine has "
            f"{memory / 1e9:.0f} GB of memory: lower {keys}"
        )


def timed_requests(dataset: CocoDataset) -> list[SampleRequest]:
    """Return some images from all over the data, whose time tells how fast it loads."""
    return [SampleRequest(index) for index in range(0, len(dataset), -(-len(dataset) // TIMED_IMAGES))]


def _loader(
    dataset: CocoDataset, cfg: Config, batches: OrientedBatchSampler | list[list[int]], persistent: bool = False
) -> DataLoader:
    timed = timed_requests(dataset)
    pixels = sum(area(dataset.network_size(request)) for request in timed) / len(timed)  # of an image
    workers = choose_workers(cfg.data.workers, (dataset[request] for request in timed), FAST_GPU / pixels)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(collate, num_classes=len(dataset.class_names), size_divisor=cfg.data.size_divisor),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=persistent and workers > 0,
        worker_init_fn=outlive_sigterm(),
        generator=torch.Generator(),  # its own, so that loading draws nothing from the generator of the run
    )
