"""Does the data loader keep up with a GPU? A clock takes batches at its pace, so that no GPU is needed.

    python -m benchmarks.loader_clock

loads generated photographs as large as COCO's at the size of `r50_1x`, 16 in a batch, and takes a batch whenever a GPU
of so many images a second would. It prints the share of the time that the clock waited for a batch: `data wait` on the
console of a training. The pace is by default this machine's share of 280 images/s on 16 cores.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks.machine import machine
from benchmarks.photos import write_photos
from benchmarks.recording import caption
from dwtriton.config.schema import Config, DataConfig
from dwtriton.console.cli import run
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import train_loader

CORES = os.cpu_count() or 1
PACE = 280 / 16  # images/s for each core
MOST_WAIT = 0.05  # of the time


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    torch.set_num_threads(1)
    about = caption({"machine": machine(torch.device("cpu"))})
    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(root=Path(folder) / "photos", workers=args.workers)
        write_photos(data.root, args.images)
        loader = train_loader(CocoDataset(data, "train"), Config(data=data))
        share = share_of_waiting(loader, data.batch_size, args.pace, args.seconds)
    verdict = "keeps up" if share < MOST_WAIT else "does not keep up"
    print(f"{about}\n{args.workers} workers, {args.pace:g} images/s asked: data wait {share:.1%}, the loader {verdict}")
    return int(share >= MOST_WAIT)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pace", type=float, default=PACE * CORES, help="images/s of the GPU (default: %(default)g)")
    parser.add_argument("--workers", type=int, default=max(1, CORES - 1), help="processes (default: %(default)s)")
    parser.add_argument("--images", type=int, default=256, help="photographs (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="of the clock (default: %(default)g)")
    return parser.parse_args(arguments)


def share_of_waiting(loader: DataLoader, images: int, pace: float, seconds: float) -> float:
    """Return the share of the time in which a batch of `images` was due and not there, over some seconds.

    The first batch of an epoch is not counted: a training waits for one in thousands. A batch that comes late moves all
    that follow.
    """
    waited = spent = 0.0
    while spent < seconds:
        batches = iter(loader)
        next(batches)
        time.sleep(images / pace)
        asked = time.perf_counter()
        for _ in batches:
            came = time.perf_counter()
            waited += came - asked
            time.sleep(images / pace)  # the step of the GPU
            asked = time.perf_counter()
            spent += asked - came
    return waited / (waited + spent)


if __name__ == "__main__":
    run(main)
