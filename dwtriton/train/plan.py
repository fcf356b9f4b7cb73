"""`--plan`: the batches that a run would have, the cost of their padding, and how many buckets are worth it."""

from collections import Counter, defaultdict
from typing import NamedTuple

from rich.console import Group
from rich.table import Table

from dwtriton.config.schema import Config
from dwtriton.data.buckets import Size, area, choose_buckets, mean_area, smallest_bucket
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import training_buckets
from dwtriton.data.sampler import OrientedBatchSampler

BUCKET_COUNTS = (1, 2, 3, 4, 6, 8, 12)  # compared in the second table
LEFT = {"title_justify": "left"}


class Plan(NamedTuple):
    """The batches of a run, as far as the first epoch shows them."""

    epochs: int
    batch_size: int
    buckets: list[Size]  # none: every batch is padded as its own images need it
    unbucketed: Counter[Size]  # number of batches by the (h, w) they would have without buckets
    image_pixels: dict[Size, list[int]]  # pixels inside the images of every batch, by the (h, w) it is padded to
    largest: list[Size]  # (h, w) that buckets have to hold

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return self.unbucketed.total()

    def describe(self) -> Group:
        """Return the plan as text and tables."""
        graphs = f"{len(self.buckets)} buckets, each a graph of torch.compile" if self.buckets else "no buckets"
        return Group(
            f"{self.epochs} epochs x {self.steps} steps of {self.batch_size} images; "
            f"batches of the first epoch: {len(self.unbucketed)} sizes, {graphs}",
            self._padding_table(),
            self._bucket_count_table(),
        )

    def _padding_table(self) -> Table:
        """Return the steps of each padded size, and the share of its pixels outside of images."""
        table = Table(
            "batches of height x width", "steps", "padding", title="padding, as configured", title_justify="left"
        )

        def add(name: str, sizes: list[Size]) -> None:
            inside = sum(sum(self.image_pixels[size]) for size in sizes)
            whole = sum(area(size) * self.batch_size * len(self.image_pixels[size]) for size in sizes)
            steps = sum(len(self.image_pixels[size]) for size in sizes)
            table.add_row(name, str(steps), f"{1 - inside / whole:.1%}")

        for size in sorted(self.image_pixels):
            add(f"{size[0]} x {size[1]}", [size])
        add("all", list(self.image_pixels))
        return table

    def _bucket_count_table(self) -> Table:
        """Return the pixels that each number of buckets adds to batches without buckets."""
        table = Table(
            "data.buckets", "pixels more than without", "sizes", title="numbers of buckets", title_justify="left"
        )
        unbucketed_area = mean_area(self.unbucketed, [])
        for count in BUCKET_COUNTS:
            buckets = choose_buckets(self.unbucketed, self.largest, count)
            names = ", ".join(f"{height} x {width}" for height, width in buckets)
            table.add_row(str(count), f"{mean_area(self.unbucketed, buckets) / unbucketed_area - 1:.2%}", names)
            if len(buckets) < count:
                break
        return table


def make_plan(cfg: Config, train_set: CocoDataset) -> Plan:
    """Draw the batches of the first epoch, once. Raises the UserErrors of a run."""
    sampler = OrientedBatchSampler(train_set.landscape, cfg.data.batch_size, cfg.train.seed)
    batches = [
        (train_set.padded_size(requests), sum(area(train_set.network_size(request)) for request in requests))
        for requests in sampler.global_batches()
    ]
    unbucketed = Counter(size for size, _ in batches)
    buckets = training_buckets(train_set, cfg, unbucketed)
    image_pixels: dict[Size, list[int]] = defaultdict(list)
    for size, pixels in batches:
        image_pixels[smallest_bucket(size, buckets)].append(pixels)
    return Plan(
        cfg.schedule.epochs, cfg.data.batch_size, buckets, unbucketed, dict(image_pixels), train_set.largest_sizes()
    )
