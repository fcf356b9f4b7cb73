"""What the comparison of assigners trains: its tables, the budget that all runs share, and the order of the runs."""

from collections.abc import Iterator
from typing import NamedTuple

BUDGET = (  # of every run
    "data.short_side=[128,128]",
    "data.long_side=176",
    "data.batch_size=4",  # many steps for few images
    "schedule.epochs=3",
    "train.precision=bfloat16",  # half again as fast as float32 on one thread
    "inference.short_side=144",
    "inference.long_side=198",
    "inference.score_threshold=0.001",  # low: products of scores are smaller than their roots
    "loss.weight_loc=1.0",  # as published, like the constants of the others; the config `shapes` has 0.5
    "train.evaluate_every=1000",  # after the last epoch alone
    "train.checkpoint_every=100",
)
LEARNING_RATES = (0.002, 0.004, 0.008)  # for 16 images; scaled with the batch
TRIAL_SEED = 100  # on which the learning rate of each row is chosen; not reported
SEEDS = (0, 1, 2)
BASELINE = "dual_weight"  # what the others are compared with


class Table(NamedTuple):
    """Rows that are compared with each other."""

    title: str
    rows: dict[str, tuple[str, ...]]  # settings of each row by its name
    settings: tuple[str, ...] = ()  # of all rows
    data: str = "shapes"  # name of the folder of the data
    rows_are: str = "assigner"
    baseline: str = ""  # table whose BASELINE the rows are compared with; empty: this one


class Run(NamedTuple):
    """One training run."""

    table: str
    row: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.table}-{self.row}-lr{self.lr:g}-seed{self.seed}".replace(" ", "-")

    def settings(self) -> list[str]:
        """Return what changes the config `shapes`."""
        table = TABLES[self.table]
        own = (f"optimizer.lr={self.lr:g}", f"train.seed={self.seed}")
        return [*BUDGET, *table.settings, *table.rows[self.row], *own]


def _assigners(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (f"loss.assigner={name}",) for name in names}


def _ablation(*settings: str) -> tuple[str, ...]:
    return ("loss.assigner=dual_weight_ablation", *(f"loss.dual_weight_ablation.{setting}" for setting in settings))


ALL = _assigners(BASELINE, "fcos", "atss", "simota", "tal")
TABLES = {
    "headline": Table("Normal head: two convolutions in each tower", ALL),
    "crowded": Table("Crowded shapes: 16 to 30 objects in every image", ALL, ("data.shapes.crowded=true",), "crowded"),
    "light": Table("Light head: one convolution in each tower", ALL, ("head.convs=1",)),
    "ablations": Table(
        "Ablations of Dual Weighting, normal head",
        {
            "negative weight 1 - w_pos": _ablation("negative_weight=complement"),
            "negative weight without IoU": _ablation("negative_weight=score"),
            "hard prior": _ablation("soft_prior=false"),
            "mu_sum = 5": _ablation("mu_sum=5.0"),
        },
        rows_are="change",
        baseline="headline",
    ),
    "trees": Table(
        "Tree crowns in photographs of 256x256 pixels, 40 epochs, normal head",
        ALL,
        (
            "data.train_images=train2017",
            "data.val_images=val2017",
            "data.train_annotations=annotations/instances_train2017.json",
            "data.val_annotations=annotations/instances_val2017.json",
            "head.num_classes=1",
            "data.short_side=[256,256]",
            "data.long_side=256",
            "inference.short_side=256",
            "inference.long_side=256",
            "schedule.epochs=40",
        ),
        "trees",
    ),
}


def next_runs(rows: list[dict], tables: list[str]) -> Iterator[Run]:
    """Yield the runs that can begin now, in order: first all learning rates of a table, then its seeds.

    `rows` are the results so far. A row's seeds follow when its learning rate is known.
    """
    done = {Run(*(row[field] for field in Run._fields)) for row in rows}
    for table in tables:
        names = TABLES[table].rows
        yield from (run for run in trial_runs(table) if run not in done)
        rates = {name: best_rate(rows, table, name) for name in names}
        for seed in SEEDS:
            runs = (Run(table, name, rate, seed) for name, rate in rates.items() if rate is not None)
            yield from (run for run in runs if run not in done)


def trial_runs(table: str) -> list[Run]:
    """Return the runs that choose the learning rate of each row."""
    return [Run(table, name, lr, TRIAL_SEED) for name in TABLES[table].rows for lr in LEARNING_RATES]


def best_rate(rows: list[dict], table: str, name: str) -> float | None:
    """Return the learning rate of the highest AP on the trial seed; None before all were tried, and if all failed."""
    trials = [row for row in rows if (row["table"], row["row"], row["seed"]) == (table, name, TRIAL_SEED)]
    finished = [row for row in trials if "AP" in row]
    if len(trials) < len(LEARNING_RATES) or not finished:
        return None
    return max(finished, key=lambda row: row["AP"])["lr"]


def count_runs(tables: list[str]) -> int:
    """Return how many runs the tables have."""
    return sum(len(TABLES[table].rows) for table in tables) * (len(LEARNING_RATES) + len(SEEDS))
