"""A run without a network, in milliseconds: it writes to a real run folder what a training writes, but for plots."""

from pathlib import Path

import torch

from dwtriton.checkpoints.checkpoint import Checkpoint
from dwtriton.config.schema import Config
from dwtriton.train.resume import load_last
from dwtriton.train.run_folder import BEST, LAST, RunFolder, written_at

PER_EPOCH = 2  # iterations
AP = (0.0, 0.2, 0.5, 0.4, 0.5, 0.3)  # after each epoch


def train(path: Path, cfg: Config, to: int) -> None:
    """Begin the run in `path`, or go on from its last checkpoint, and stop after `to` iterations.

    A weight depends on all iterations so far, so that a run that repeats or leaves out one has other bits.
    """
    last_written = written_at(path / LAST)
    resumed = load_last(path) if last_written or any(path.glob("*.pt")) else None
    done, weight = (resumed.iteration, resumed.model["weight"]) if resumed else (0, torch.linspace(-1, 1, 600))
    folder = RunFolder(path, cfg, done, PER_EPOCH, last_written)
    try:
        for iteration in range(done, max(to, done) + 1):
            epoch = -(-iteration // PER_EPOCH)
            if iteration > done:
                weight = 0.9 * weight + iteration
                folder.record("step", iteration, epoch, lr=0.1, loss=weight.mean().item())
                folder.save(Checkpoint(cfg, ["a"], [1], iteration, {"weight": weight}, {"state": weight}))
            if iteration and iteration % PER_EPOCH == 0:  # a resumed run may begin with its evaluation
                best = max([row["AP"] for row in folder.metrics.rows if row["kind"] == "evaluation"], default=0)
                folder.record("evaluation", iteration, epoch, AP=AP[epoch], AP50=0.5, AP75=0.5)
                if AP[epoch] >= best:
                    folder.keep_last(BEST)
    finally:
        folder.close()
