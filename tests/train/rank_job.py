"""What test_ranks.py starts: the training command with something done to it. `rank_job.py SCENARIO [argument ...]`."""

import os
import signal
import sys
import time

import torch

from dwtriton.train import __main__ as command
from dwtriton.train import loop

RANK = os.environ.get("RANK", "0")
FIRST_LIFE = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"


def before_step(act):
    """Call `act(trainer, batches)` before every optimiser step."""
    step = loop.Trainer.step

    def acting_step(trainer, batches, epoch):
        act(trainer, batches)
        step(trainer, batches, epoch)

    loop.Trainer.step = acting_step


def in_float64():
    """Weights and images in float64. First boxes of 16, 32, ... pixels have IoUs over 0.5: no normaliser is clamped."""
    build = loop.build_detector

    def build_in_float64(cfg):
        detector = build(cfg).double()
        torch.nn.init.constant_(detector.head.box_conv.bias, 1.0)
        detector.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        return detector

    loop.build_detector = build_in_float64


def rank_1_dies_once():
    """In iteration 6, without a word, and only in its first life."""

    def die(trainer, _batches):
        if (RANK, trainer.iteration, FIRST_LIFE) == ("1", 5, True):
            os.kill(os.getpid(), signal.SIGKILL)

    in_float64()
    before_step(die)


def rank_1_has_another_rate():
    if RANK == "1":
        sys.argv.append("--set=optimizer.lr=0.5")


def rank_1_sees_nan():
    """In iteration 3 the images of rank 1 are not finite; it writes their ids beside the run."""

    def poison(trainer, batches):
        if (RANK, trainer.iteration) == ("1", 2):
            trainer.detector.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0] * torch.nan,))
            (trainer.out / "poisoned").write_text(" ".join(map(str, batches[0].image_ids)))

    before_step(poison)


def slow_steps():
    before_step(lambda _trainer, _batches: time.sleep(0.2))


scenario = sys.argv.pop(1)
{
    "in_float64": in_float64,
    "rank_1_dies_once": rank_1_dies_once,
    "rank_1_has_another_rate": rank_1_has_another_rate,
    "rank_1_sees_nan": rank_1_sees_nan,
    "slow_steps": slow_steps,
}[scenario]()
command.cli.run(command.main)
