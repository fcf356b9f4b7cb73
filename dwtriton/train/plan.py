"""`--plan`: the batches that a run would have, the cost of their padding, and how many buckets are worth it."""

from collections import Counter, defaultdict
from typing import NamedTuple

from rich.console import Group
from rich.table import Table

from dwtriton.config.schema import Config
from dwtriton.data.buckets import Size, area, choose_buckets, mean_area, smallest_bucket
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import training_buckets, training_sampler
from dwtriton.train.optimizer import check_warmup

BUCKET_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)  # compared in the second table


class Plan(NamedTuple):
    """The batches of a run, as far as its first epoch shows them."""

    epochs: int
    steps: int  # optimiser steps of an epoch
    buckets: list[Size]  # none: every batch is padded as its own images need it
    padding: float  # share of the pixels of all batches
    pixels: float  # of an image in a batch, on average, with its padding
    text: Group  # everything, for people


def make_plan(cfg: Config, train_set: CocoDataset) -> Plan:
    """Draw the batches of the first epoch, once, and plan a run. Raises the UserErrors of a run."""
    sampler = training_sampler(train_set, cfg)
    batches = [  # ((h, w) without buckets, pixels inside the images)
        (train_set.padded_size(requests), sum(area(train_set.network_size(request)) for request in requests))
        for requests in sampler.global_batches()
    ]
    unbucketed = Counter(size for size, _ in batches)
    buckets = training_buckets(train_set, cfg, unbucketed)
    inside = sum(pixels for _, pixels in batches) / len(batches) / cfg.data.batch_size  # of an image, on average
    by_bucket: dict[Size, list[int]] = defaultdict(list)
    for size, pixels in batches:
        by_bucket[smallest_bucket(size, buckets)].append(pixels)
    warning = check_warmup(cfg.schedule, cfg.schedule.epochs * sampler.steps)
    graphs = f"{len(buckets)} buckets, each a graph of torch.compile" if buckets else "no buckets"
    text = Group(
        f"{cfg.schedule.epochs} epochs x {sampler.steps} steps of {cfg.data.batch_size} images; "
        f"batches of the first epoch: {len(unbucketed)} sizes, {graphs}",
        *([warning] if warning else []),
        _padding_table(by_bucket, cfg.data.batch_size),
        _bucket_count_table(unbucketed, train_set.largest_sizes(), inside),
    )
    pixels = mean_area(unbucketed, buckets)
    return Plan(cfg.schedule.epochs, sampler.steps, buckets, 1 - inside / pixels, pixels, text)


def _padding_table(by_bucket: dict[Size, list[int]], images: int) -> Table:
    """Return the steps of each bucket, and the share of its pixels that is padding."""
    table = Table("batches of height x width", "steps", "padding", title="padding, as configured", title_justify="left")
    rows = {f"{size[0]} x {size[1]}": [size] for size in sorted(by_bucket)} | {"all": list(by_bucket)}
    for name, sizes in rows.items():
        batches = [(area(size) * images, inside) for size in sizes for inside in by_bucket[size]]
        whole, inside = map(sum, zip(*batches))
        table.add_row(name, str(len(batches)), f"{1 - inside / whole:.1%}")
    return table


def _bucket_count_table(unbucketed: Counter[Size], limits: list[Size], inside: float) -> Table:
    """Return the pixels that each number of buckets adds to batches without buckets, and the padding there is then.

    `inside`: pixels of an image on average, before padding.
    """
    columns = "data.buckets", "pixels more than without", "padding", "sizes"
    table = Table(*columns, title="numbers of buckets", title_justify="left")
    unbucketed_area = mean_area(unbucketed, [])
    for count in BUCKET_COUNTS:
        buckets = choose_buckets(unbucketed, limits, count)
        names = ", ".join(f"{height} x {width}" for height, width in buckets)
        bucketed_area = mean_area(unbucketed, buckets)
        table.add_row(
            str(count), f"{bucketed_area / unbucketed_area - 1:.2%}", f"{1 - inside / bucketed_area:.1%}", names
        )
        if len(buckets) < count:
            break
    return table
