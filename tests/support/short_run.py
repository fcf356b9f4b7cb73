"""A run of one epoch on very small images with a very small network: that it begins, takes steps and evaluates."""

import io
from pathlib import Path

from dwtriton.config.load import override_config
from dwtriton.config.schema import Config
from dwtriton.console.terminal import Terminal
from dwtriton.train.trainer import Trainer

SMALL_IMAGES = ["data.short_side=[64,64]", "data.long_side=96", "data.workers=0", "data.batch_size=2", "data.buckets=0"]
SMALL_IMAGES += ["inference.short_side=64", "inference.long_side=96"]
SMALL_NETWORK = ["backbone.depth=18", "backbone.weights=none", "head.channels=16", "head.convs=1", "head.groups=4"]
ONE_EPOCH = ["schedule.epochs=1", "schedule.warmup_iterations=0", "train.precision=float32", "train.compile=off"]


def brief_settings(*settings: str) -> list[str]:
    """Settings of such a run, after others."""
    return [*settings, *SMALL_IMAGES, *SMALL_NETWORK, *ONE_EPOCH]


def run_briefly(cfg: Config, out: Path) -> str:
    """Train for an epoch and evaluate, and return what is printed. Fails if it takes no step or has no AP."""
    console = Terminal(file=io.StringIO(), width=200)
    trainer = Trainer(override_config(cfg, brief_settings()), out, console)
    console.print(trainer.summary())
    evaluation = trainer.fit()
    assert trainer.iteration == trainer.total > 0
    assert evaluation is not None
    assert evaluation.metrics["AP"] >= 0
    return console.file.getvalue()
