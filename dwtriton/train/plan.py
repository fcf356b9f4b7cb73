"""`--plan`: the batches that a run would have, what padding costs, and how many buckets are worth it."""

from collections import Counter, defaultdict

from rich.console import Group
from rich.table import Table

from dwtriton.config.schema import Config
from dwtriton.data.batching import OrientedBatchSampler, training_buckets
from dwtriton.data.buckets import Size, area, choose_buckets, mean_area, smallest_bucket
from dwtriton.data.coco import CocoDataset

COUNTS = (1, 2, 3, 4, 6, 8, 12)  # of buckets, to compare


def plan(cfg: Config, train_set: CocoDataset) -> Group:
    """The plan of a run, for a console; its batches are those of the first epoch. Raises UserError as training does."""
    buckets = training_buckets(train_set, cfg)
    sampler = OrientedBatchSampler(train_set.landscape, cfg.data.batch_size, cfg.train.seed)
    natural: Counter[Size] = Counter()  # how often batches have which size, without buckets
    batches: dict[Size, list[int]] = defaultdict(list)  # pixels of the images of every batch, by bucket
    for requests in sampler.whole_batches():
        size = train_set.padded_size(requests)
        natural[size] += 1
        pixels = sum(area(train_set.network_size(request)) for request in requests)
        batches[smallest_bucket(size, buckets)].append(pixels)
    steps = f"{cfg.schedule.epochs} epochs x {sampler.steps} steps of {cfg.data.batch_size} images"
    graphs = f"{len(buckets)} buckets, each a graph of torch.compile" if buckets else "no buckets"
    return Group(
        f"{steps}; batches of the first epoch: {len(natural)} sizes, {graphs}",
        _bucket_table(batches, cfg.data.batch_size),
        _count_table(natural, train_set.largest_sizes()),
    )


def _bucket_table(batches: dict[Size, list[int]], images: int) -> Table:
    """Steps of each bucket, and the share of its pixels that belong to no image."""
    table = Table("batches of height x width", "steps", "padding", title="padding, as configured", title_justify="left")

    def add(name: str, sizes: list[Size]) -> None:
        inside = sum(sum(batches[size]) for size in sizes)
        whole = sum(area(size) * images * len(batches[size]) for size in sizes)
        table.add_row(name, str(sum(len(batches[size]) for size in sizes)), f"{1 - inside / whole:.1%}")

    for size in sorted(batches):
        add(f"{size[0]} x {size[1]}", [size])
    add("all", list(batches))
    return table


def _count_table(natural: Counter[Size], limits: list[Size]) -> Table:
    """What each number of buckets adds to batches that are padded as their images need it."""
    table = Table("data.buckets", "pixels more than without", "sizes", title="numbers of buckets", title_justify="left")
    own = mean_area(natural, [])
    for count in COUNTS:
        buckets = choose_buckets(natural, limits, count)
        names = ", ".join(f"{height} x {width}" for height, width in buckets)
        table.add_row(str(count), f"{mean_area(natural, buckets) / own - 1:.2%}", names)
        if len(buckets) < count:
            break
    return table
