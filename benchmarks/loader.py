"""Images a second of the data loader on this machine's CPU, against a plain torchvision loader with PIL.

    python -m benchmarks.loader

draws photographs as large as COCO's, loads them at the size of training (800 x 1333, every one flipped) and writes
benchmarks/results/loader/cpu.json. Both contestants get the same batches; it refuses to run if their images differ.

Steps and images/s of a core count the CPU time of the process that loads, so other work on the machine changes them
little; images/s are those that arrive. Busy threads of a worker are those with more than 5% of its CPU time.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import PIL
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import machine
from benchmarks.photos import CLASSES, write_photos
from benchmarks.plain_loader import plain_collate, plain_dataset, plain_loader, plain_steps
from benchmarks.recording import RESULTS, significant
from dwtriton.config.schema import Config, DataConfig
from dwtriton.console.cli import run
from dwtriton.core.errors import UserError
from dwtriton.core.files import make_folder, write_text
from dwtriton.data.batch import collate
from dwtriton.data.coco import CocoDataset
from dwtriton.data.images import read_image
from dwtriton.data.loaders import train_loader
from dwtriton.data.transforms import flip, resize
from dwtriton.model.pixels import PixelDetector

BOXES = torch.tensor([[10.0, 20, 300, 200]]).repeat(7, 1)  # for the steps one by one
TICKS = os.sysconf("SC_CLK_TCK")  # a second, the unit of CPU time in /proc


class Contestant(NamedTuple):
    dataset: Dataset
    steps: dict[str, Callable]  # from a file to its image and boxes, from these to the next, to the network's input
    collate: Callable[[list], Tensor]  # from items of the data set to the images of a batch
    loader: Callable[[int], DataLoader]  # for a number of workers; the same batches in every epoch


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    torch.set_num_threads(1)
    start = time.perf_counter()
    about = machine(torch.device("cpu")) | {"torchvision": torchvision.__version__, "pillow": PIL.__version__}
    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(root=Path(folder) / "photos", batch_size=args.batch, workers=0, flip=1.0, buckets=0)
        cfg = Config(data=data)
        file_bytes = write_photos(cfg.data.root, args.images)
        contestants = {"dwtriton": ours(cfg), "torchvision": plain(cfg)}
        check_same_images(contestants)
        results = {
            "machine": about,
            "case": {"images": args.images, "batch": args.batch, "file_kb": round(file_bytes / 1000)},
            "steps_ms": step_times(contestants, args.batch, args.rounds),
            "loaders": loader_rates(contestants, args.workers, args.rounds),
        }
    make_folder(args.out.parent)
    write_text(args.out, json.dumps(results, indent=2) + "\n")
    print(f"{markdown(results)}\n\nwritten to {args.out} after {time.perf_counter() - start:.0f} s")
    return 0


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workers = [0, *(2**n for n in range(os.cpu_count().bit_length()))]
    parser.add_argument("--images", type=int, default=32, help="photographs (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images in a batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=workers, help="processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="of every measurement (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "loader" / "cpu.json", help="JSON (default: %(default)s)")
    return parser.parse_args(arguments)


def ours(cfg: Config) -> Contestant:
    data, dataset = cfg.data, CocoDataset(cfg.data, "train")
    steps = {
        "decode": lambda path: (read_image(path), BOXES),
        "resize": lambda image, boxes: resize(image, boxes, data.short_side[0], data.long_side)[:2],
        "flip": flip,
    }

    def loader(workers: int) -> DataLoader:
        return train_loader(dataset, cfg.model_copy(update={"data": data.model_copy(update={"workers": workers})}))

    return Contestant(dataset, steps, lambda items: collate(items, CLASSES, data.size_divisor).images, loader)


def plain(cfg: Config) -> Contestant:
    data, dataset = cfg.data, plain_dataset(cfg.data)
    sampler = train_loader(CocoDataset(data, "train"), cfg).batch_sampler
    batches = [[sample.index for sample in batch] for batch in sampler.global_batches()]

    def loader(workers: int) -> DataLoader:
        return plain_loader(dataset, data.model_copy(update={"workers": workers}), batches)

    return Contestant(
        dataset, plain_steps(data, BOXES), lambda items: plain_collate(items, data.size_divisor)[0], loader
    )


def check_same_images(contestants: dict[str, Contestant]) -> None:
    """Raises UserError unless all make the same first batch, to two levels of 255: each rounds in its own way."""
    batch, (images, _) = (next(iter(contestant.loader(0))) for contestant in contestants.values())
    ours = PixelDetector(torch.nn.Identity(), DataConfig()).normalise(batch.images, batch.image_sizes)
    if images.shape != ours.shape or (images - ours).abs().max() * min(DataConfig().std) > 2.01:
        raise UserError("the two loaders make different images; nothing is timed")


def step_times(contestants: dict[str, Contestant], batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds an image, by step and contestant."""
    paths = contestants["dwtriton"].dataset.paths
    batches = [range(first, min(first + batch, len(paths))) for first in range(0, len(paths), batch)]
    seconds = defaultdict(list)  # by step, contestant and batch, one of each round
    for _ in range(rounds):
        for indices in batches:
            for name, contestant in contestants.items():
                for step, duration in batch_times(contestant, paths, indices).items():
                    seconds[step, name, indices].append(duration)
    steps = dict.fromkeys(step for step, name, _ in seconds if name == "torchvision")  # it has them all
    return {
        step: {
            name: significant(1e3 / len(paths) * sum(min(seconds[step, name, indices]) for indices in batches))
            for name in contestants
            if (step, name, batches[0]) in seconds
        }
        for step in steps
    }


def batch_times(contestant: Contestant, paths: list[str], indices: range) -> dict[str, float]:
    """Seconds of CPU time of every step for one batch, in the order in which a loader takes them."""
    seconds = defaultdict(float)

    def timed(step: str, function: Callable, *inputs):
        start = time.thread_time()
        output = function(*inputs)
        seconds[step] += time.thread_time() - start
        return output

    for index in indices:
        sample = (paths[index],)
        for step, function in contestant.steps.items():
            sample = timed(step, function, *sample)
    items = [timed("all of these, as an item of the data set", contestant.dataset.__getitem__, i) for i in indices]
    timed("pad and stack", contestant.collate, items)
    return seconds


def loader_rates(contestants: dict[str, Contestant], counts: list[int], rounds: int) -> list[dict]:
    """A row for every number of workers, with the rates of every contestant."""
    epochs = defaultdict(list)
    for _ in range(rounds):
        for setting in product(counts, contestants):
            workers, name = setting
            epochs[setting].append(time_epoch(contestants[name].loader(workers)))
    return [{"workers": workers, **{name: rates(epochs[workers, name]) for name in contestants}} for workers in counts]


class Epoch(NamedTuple):
    images: int
    seconds: float
    loading_seconds: float  # CPU time of all loading processes
    main_seconds: float  # CPU time of the main process
    busy_threads: int  # of the loading process that has most of them


def rates(epochs: list[Epoch]) -> dict[str, float]:
    """What is recorded of several epochs of one loader."""
    images = sum(epoch.images for epoch in epochs)
    return {
        "images_s": significant(max(epoch.images / epoch.seconds for epoch in epochs)),
        "images_s_core": significant(images / sum(epoch.loading_seconds for epoch in epochs)),
        "main_ms": significant(1e3 * sum(epoch.main_seconds for epoch in epochs) / images),
        "busy_threads": max(epoch.busy_threads for epoch in epochs),
    }


def time_epoch(loader: DataLoader) -> Epoch:
    """The second epoch of a loader: the first one starts the workers."""
    others = multiprocessing.active_children()
    for _ in loader:
        pass
    workers = [process for process in multiprocessing.active_children() if process not in others]
    loading = workers or [multiprocessing.current_process()]
    before = [thread_ticks(process.pid) for process in loading]
    start, main_start = time.perf_counter(), time.process_time()
    for _ in loader:
        pass
    seconds, main_seconds = time.perf_counter() - start, time.process_time() - main_start
    used = [
        [ticks - earlier.get(thread, 0) for thread, ticks in thread_ticks(process.pid).items()]
        for process, earlier in zip(loading, before)
    ]
    return Epoch(
        images=sum(len(batch) for batch in loader.batch_sampler),
        seconds=seconds,
        loading_seconds=sum(map(sum, used)) / TICKS,
        main_seconds=main_seconds,
        busy_threads=max(sum(ticks > 0.05 * sum(threads) for ticks in threads) for threads in used),
    )


def thread_ticks(process: int) -> dict[str, int]:
    """CPU time so far of every thread of a process."""
    ticks = {}
    for thread in Path(f"/proc/{process}/task").iterdir():
        fields = (thread / "stat").read_text().rpartition(")")[2].split()
        ticks[thread.name] = int(fields[11]) + int(fields[12])  # in user mode and in the kernel
    return ticks


def markdown(results: dict) -> str:
    """A line on the machine, a table of the steps and one of the loaders, each with how many times ours is faster."""
    about, case = results["machine"], results["case"]
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "torchvision", "pillow"))
    commit = f"commit {(about['commit'] or 'unknown')[:7]}{' with changes' if about['dirty'] else ''}"
    lines = [
        f"{about['name']}, {about['cores']} cores, load {about['load']} before the run, {versions}, {commit}, "
        f"{about['date']}; {case['images']} files of {case['file_kb']} kB, batches of {case['batch']}:",
        "",
        "| CPU ms an image | dwtriton | torchvision, PIL | times faster |",
        "|---" * 4 + "|",
    ]
    for step, ms in results["steps_ms"].items():
        mine, other = ms.get("dwtriton"), ms["torchvision"]
        cells = [f"{mine:g}", f"{other:g}", f"{other / mine:.1f}"] if mine else ["on the device", f"{other:g}", ""]
        lines.append(f"| {' | '.join([step, *cells])} |")
    lines += [
        "",
        "| workers | images/s of a core | torchvision, PIL | times faster | images/s | torchvision, PIL |"
        " CPU ms an image in the main process | busy threads of a worker |",
        "|---" * 8 + "|",
    ]
    for row in results["loaders"]:
        mine, other = row["dwtriton"], row["torchvision"]
        cells = [row["workers"], mine["images_s_core"], other["images_s_core"]]
        cells += [f"{mine['images_s_core'] / other['images_s_core']:.1f}", mine["images_s"], other["images_s"]]
        lines.append(f"| {' | '.join(map(str, [*cells, mine['main_ms'], mine['busy_threads']]))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
