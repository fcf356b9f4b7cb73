"""The loaders of training and evaluation, and the buckets that training batches are padded to."""

from collections import Counter
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch.utils.data import DataLoader

from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.data.batch import collate
from dwtriton.data.buckets import Size, choose_buckets, fits, padded_size, smallest_bucket
from dwtriton.data.coco import CocoDataset, SampleRequest
from dwtriton.data.sampler import OrientedBatchSampler
from dwtriton.data.workers import outlive_sigterm


def train_loader(dataset: CocoDataset, cfg: Config, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Loader of a rank's micro-batches, for any number of epochs; `loader.batch_sampler.set_epoch` chooses one.

    Raises UserError if the batch does not divide into equal micro-batches.
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
    sampler = OrientedBatchSampler(dataset.landscape, cfg.data.batch_size, cfg.train.seed)
    return Counter(map(dataset.padded_size, sampler.global_batches()))


def eval_loader(dataset: CocoDataset, cfg: Config, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Loader of a rank's part of the images; over all ranks each is loaded once.

    A batch holds images that pad to the same size. No image is padded beyond its own next multiple of
    `data.size_divisor`, so its detections do not depend on the others (the official test path has batches of one).
    """
    order = np.argsort(dataset.aspects, kind="stable").tolist()
    by_size = [list(same) for _, same in groupby(order, lambda index: dataset.padded_size([SampleRequest(index)]))]
    size = max(1, cfg.data.batch_size // world_size)
    batches = [same[i : i + size] for same in by_size for i in range(0, len(same), size)]
    return _loader(dataset, cfg, batches[rank::world_size])


def _loader(
    dataset: CocoDataset, cfg: Config, batches: OrientedBatchSampler | list[list[int]], persistent_workers: bool = False
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.data.workers,
        collate_fn=partial(collate, num_classes=len(dataset.class_names), size_divisor=cfg.data.size_divisor),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=persistent_workers,
        worker_init_fn=outlive_sigterm(),
        generator=torch.Generator(),  # its own, so that loading draws nothing from the generator of the run
    )
