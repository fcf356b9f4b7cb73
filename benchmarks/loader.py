"""Images a second of the data loader on this machine's CPU, against a plain torchvision loader with PIL images.

    python -m benchmarks.loader

generates photographs as large as COCO's, loads them at the size of training (800 x 1333, all flipped) and writes
benchmarks/results/loader/cpu.json. Both pipelines get the same batches; nothing is timed if their images differ.

Steps and images/s of a core are measured in CPU time of the loading processes, which other work on the machine changes
little; images/s are measured by the wall clock. Busy threads of a worker are those with more than 5% of its CPU time.
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
from dwtriton.data.images import flip, read_image, resize
from dwtriton.data.loaders import train_loader
from dwtriton.model.pixels import PixelDetector

BOXES = torch.tensor([[10.0, 20, 300, 200]]).repeat(7, 1)  # of an image when its steps are timed one by one
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")  # of the CPU times in /proc


class Pipeline(NamedTuple):
    """A way to load batches of images, and its parts."""

    dataset: Dataset
    steps: dict[str, Callable]  # first from a path to image and boxes, then from these to the next ones
    collate: Callable[[list], Tensor]  # from items of the data set to the images of a batch
    loader: Callable[[int], DataLoader]  # by number of workers; the same batches in every epoch


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    torch.set_num_threads(1)
    start = time.perf_counter()
    about = machine(torch.device("cpu")) | {"torchvision": torchvision.__version__, "pillow": PIL.__version__}
    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(root=Path(folder) / "photos", batch_size=args.batch, workers=0, flip=1.0, buckets=0)
        cfg = Config(data=data)
        file_bytes = write_photos(cfg.data.root, args.images)
        pipelines = {"dwtriton": ours(cfg), "torchvision": plain(cfg)}
        check_same_images(pipelines)
        results = {
            "machine": about,
            "case": {"images": args.images, "batch": args.batch, "file_kb": round(file_bytes / 1000)},
            "steps_ms": step_times(pipelines, args.batch, args.rounds),
            "loaders": loader_rates(pipelines, args.workers, args.rounds),
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


def ours(cfg: Config) -> Pipeline:
    """Return the pipeline of this package."""
    data, dataset = cfg.data, CocoDataset(cfg.data, "train")
    steps = {
        "decode": lambda path: (read_image(Path(path)), BOXES),
        "resize": lambda image, boxes: resize(image, boxes, data.short_side[0], data.long_side)[:2],
        "flip": flip,
    }

    def loader(workers: int) -> DataLoader:
        return train_loader(dataset, cfg.model_copy(update={"data": data.model_copy(update={"workers": workers})}))

    return Pipeline(dataset, steps, lambda items: collate(items, CLASSES, data.size_divisor).images, loader)


def plain(cfg: Config) -> Pipeline:
    """Return the pipeline of plain torchvision with the same batches."""
    data, dataset = cfg.data, plain_dataset(cfg.data)
    sampler = train_loader(CocoDataset(data, "train"), cfg).batch_sampler
    batches = [[sample.index for sample in batch] for batch in sampler.global_batches()]

    def loader(workers: int) -> DataLoader:
        return plain_loader(dataset, data.model_copy(update={"workers": workers}), batches)

    return Pipeline(dataset, plain_steps(data, BOXES), lambda items: plain_collate(items, data.size_divisor)[0], loader)


def check_same_images(pipelines: dict[str, Pipeline]) -> None:
    """Raise UserError unless the first batches agree to two levels of 255, which differences in rounding explain."""
    batch, (images, _) = (next(iter(pipeline.loader(0))) for pipeline in pipelines.values())
    ours = PixelDetector(torch.nn.Identity(), DataConfig()).normalise(batch.images, batch.image_sizes)
    if images.shape != ours.shape or (images - ours).abs().max() * min(DataConfig().std) > 2.01:
        raise UserError("the two loaders make different images; nothing is timed")


def step_times(pipelines: dict[str, Pipeline], batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return CPU milliseconds an image by step and pipeline, of the fastest round of each batch."""
    paths = pipelines["dwtriton"].dataset.paths
    batches = [range(first, min(first + batch, len(paths))) for first in range(0, len(paths), batch)]
    seconds = defaultdict(list)  # by step, pipeline and batch: one entry a round
    for _ in range(rounds):
        for indices in batches:
            for name, pipeline in pipelines.items():
                for step, duration in batch_times(pipeline, paths, indices).items():
                    seconds[step, name, indices].append(duration)
    steps = dict.fromkeys(step for step, name, _ in seconds if name == "torchvision")  # the pipeline with all steps
    return {
        step: {
            name: significant(1e3 / len(paths) * sum(min(seconds[step, name, indices]) for indices in batches))
            for name in pipelines
            if (step, name, batches[0]) in seconds
        }
        for step in steps
    }


def batch_times(pipeline: Pipeline, paths: list[str], indices: range) -> dict[str, float]:
    """Return the CPU seconds of every step for one batch, in the order of a loader."""
    seconds = defaultdict(float)

    def timed(step: str, function: Callable, *inputs):
        start = time.thread_time()
        output = function(*inputs)
        seconds[step] += time.thread_time() - start
        return output

    for index in indices:
        sample = (paths[index],)
        for step, function in pipeline.steps.items():
            sample = timed(step, function, *sample)
    items = [timed("all of these, as an item of the data set", pipeline.dataset.__getitem__, i) for i in indices]
    timed("pad and stack", pipeline.collate, items)
    return seconds


def loader_rates(pipelines: dict[str, Pipeline], counts: list[int], rounds: int) -> list[dict]:
    """Return a row for each number of workers with the rates of each pipeline."""
    epochs = defaultdict(list)
    for _ in range(rounds):
        for setting in product(counts, pipelines):
            workers, name = setting
            epochs[setting].append(time_epoch(pipelines[name].loader(workers)))
    return [{"workers": workers, **{name: rates(epochs[workers, name]) for name in pipelines}} for workers in counts]


class Epoch(NamedTuple):
    """Times of one epoch."""

    images: int
    seconds: float
    loading_seconds: float  # CPU time of all loading processes
    main_seconds: float  # CPU time of the main process
    busy_threads: int  # of the loading process that has most of them


def rates(epochs: list[Epoch]) -> dict[str, float]:
    """Return the recorded figures of several epochs of one loader."""
    images = sum(epoch.images for epoch in epochs)
    return {
        "images_s": significant(max(epoch.images / epoch.seconds for epoch in epochs)),
        "images_s_core": significant(images / sum(epoch.loading_seconds for epoch in epochs)),
        "main_ms": significant(1e3 * sum(epoch.main_seconds for epoch in epochs) / images),
        "busy_threads": max(epoch.busy_threads for epoch in epochs),
    }


def time_epoch(loader: DataLoader) -> Epoch:
    """Time the second epoch of a loader; the first one starts the workers."""
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
        loading_seconds=sum(map(sum, used)) / TICKS_PER_SECOND,
        main_seconds=main_seconds,
        busy_threads=max(sum(ticks > 0.05 * sum(threads) for ticks in threads) for threads in used),
    )


def thread_ticks(process: int) -> dict[str, int]:
    """Return the CPU time so far of every thread of a process."""
    ticks = {}
    for thread in Path(f"/proc/{process}/task").iterdir():
        fields = (thread / "stat").read_text().rpartition(")")[2].split()
        ticks[thread.name] = int(fields[11]) + int(fields[12])  # in user mode and in the kernel
    return ticks


def markdown(results: dict) -> str:
    """Return a line on the machine, a table of the steps and one of the loaders, with speed-ups."""
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
