"""Training steps of whole detectors: images a second, milliseconds by part, memory, recompilations and host syncs.

    python -m benchmarks.train_step

times steps of r50_1x from the bytes of a batch in CPU memory to the updated weights, with our losses, the released
algorithm, and torchvision's FCOS (see detectors.py), and writes benchmarks/results/train_step/MACHINE.json and .png
after each method. A method that fails is recorded with its error; if one of MUST_RUN fails, the exit code is 1.

Steps are queued without waiting for the device; images/s are wall-clock rates over all of them. Times of parts are
differences between forward passes that end after one part and after the next, each compiled alone (in the mode default)
where the method is compiled; the loader has a benchmark of its own. The share of the loss is measured by the profiler
(loss_share.py). Memory is, on a GPU, the peak of everything allocated; on a CPU, the peak of a step beyond weights and
momenta. `varied` counts graphs, graph breaks and host syncs of compiled steps on batches of all buckets with 0 to 100
boxes an image, some of them without any.
"""

import argparse
import gc
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.detectors import (
    OUR_DETECTOR,
    TRAIN_METHODS,
    Step,
    autocast,
    benchmark_config,
    make_batch,
    make_target,
    make_train_step,
    network_parts,
    torchvision_step,
)
from benchmarks.flops import image_flops, peak_flops
from benchmarks.loss_share import loss_share
from benchmarks.machine import find_device, machine
from benchmarks.methods import graph_breaks
from benchmarks.recording import RESULTS, reason, record, results_file, significant
from benchmarks.train_report import draw, markdown_table
from dwtriton.config.load import override_config
from dwtriton.config.schema import Config
from dwtriton.console.cli import run
from dwtriton.core.targets import pack_targets
from dwtriton.core.transfer import to_device
from dwtriton.model.pixels import PixelDetector
from dwtriton.train.compile import GraphWatch
from dwtriton.train.step import TrainStep
from tests.support.peak import peak_bytes

MUST_RUN = ("compiled", "triton")  # if these fail, the benchmark fails
BOXES = (7, 3, 0, 12, 1, 20, 5, 8)  # of the images of a batch, repeated; the mean of COCO is 7
WARM_UP_STEPS = 3


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    device = find_device(args.device)
    torch._logging.set_logs(all=logging.ERROR)  # not a line for each graph break of torchvision
    start = time.perf_counter()
    size = (args.height, args.width)
    cfg = benchmark_config(args.cfg, [size, size[::-1]], args.images, args.precision, args.mode)
    cfg = override_config(cfg, [f"train.deterministic={args.deterministic}"])
    results = {
        "machine": machine(device),
        "case": {"config": args.cfg, "height": size[0], "width": size[1], "images": args.images}
        | {"precision": args.precision, "mode": args.mode, "deterministic": cfg.train.deterministic},
        "flops_image": image_flops(cfg, size, training=True),
        "rows": [],
        "varied": None,
    }
    peak = peak_flops(results["machine"]["name"]) if args.precision == "bfloat16" else None
    for method in args.methods:
        row = measure_row(method, cfg, size, device, args.seconds)
        if peak and method in OUR_DETECTOR and "images_s" in row:
            row["mfu"] = significant(results["flops_image"] * row["images_s"] / peak)
        results["rows"].append(row)
        record(results, args.out, draw)
    start_afresh(device)
    if args.varied:
        results["varied"] = attempt(lambda: varied_steps(cfg, device, args.varied, args.varied_seconds))
        record(results, args.out, draw)
    print(f"{markdown_table(results)}\n\nwritten to {args.out}, .png beside it, {time.perf_counter() - start:.0f} s")
    ours = [row for row in results["rows"] if row["method"] in MUST_RUN]
    return int(any("skipped" in part for part in (*ours, results["varied"] or {})))


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cfg", default="r50_1x", help="config (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=TRAIN_METHODS, help="default: all; triton only on a GPU")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--images", type=int, help="in a step (default: 16 on a GPU, 2 on a CPU)")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--mode", default="default", help="of torch.compile (default: %(default)s)")
    parser.add_argument("--deterministic", default="true", choices=("true", "false"), help="convolutions (%(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each method, at least three steps")
    parser.add_argument("--varied", type=int, help="steps of varied batches, 0: none (default: 2000, 10 on a CPU)")
    parser.add_argument("--varied-seconds", type=float, default=240.0, help="limit for them")
    parser.add_argument("--out", type=Path, help="JSON file; the plot goes beside it")
    args = parser.parse_args(arguments)
    cuda = args.device == "cuda"
    args.methods = args.methods or [method for method in TRAIN_METHODS if cuda or method != "triton"]
    args.images = args.images or (16 if cuda else 2)
    args.precision = args.precision or ("bfloat16" if cuda else "float32")
    args.varied = (2000 if cuda else 10) if args.varied is None else args.varied
    args.out = args.out or results_file(torch.device(args.device), RESULTS / "train_step")
    return args


def measure_row(method: str, cfg: Config, size: tuple[int, int], device: torch.device, seconds: float) -> dict:
    """Measure a method; if it fails, the row has what was measured before, and the error as `skipped`."""
    print(f"{TRAIN_METHODS[method]} ...", flush=True)
    start_afresh(device)
    count = cfg.data.batch_size
    boxes = [BOXES[i % len(BOXES)] for i in range(count)]
    batch = make_batch(size, boxes, cfg.head.num_classes, pinned=device.type == "cuda")
    row: dict = {"method": method}
    try:
        if method in OUR_DETECTOR:
            train_step = make_train_step(method, cfg, device, capacity=100 * count)
            step = partial(train_step, [batch], 1.0)
        else:
            step = torchvision_step(cfg, batch, size, device, compiled=method.endswith("compiled"))
        row |= measure_steps(step, count, device, seconds)
        if method in OUR_DETECTOR:
            if share := loss_share(step, device):
                row["loss_share"] = significant(share)
            row["parts_ms"] = measure_parts(train_step, batch, row["ms"], device, seconds / 4)
    except Exception as error:
        row["skipped"] = reason(error)
    print(f"  {row.get('images_s', row.get('skipped'))} images/s", flush=True)
    return row


def attempt(measure: Callable[[], dict]) -> dict:
    """Return what `measure` returns, or its error as `skipped`."""
    try:
        return measure()
    except Exception as error:
        return {"skipped": reason(error)}


def start_afresh(device: torch.device) -> None:
    """Free the graphs and the memory of the method before."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_steps(step: Step, images: int, device: torch.device, seconds: float) -> dict:
    """Return rate and peak memory of consecutive steps; the warm-up, which may compile, is timed separately."""
    began = time.perf_counter()
    for _ in range(WARM_UP_STEPS):
        step()
    synchronise(device)
    warm_up = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began, steps = time.perf_counter(), 0
    while steps < 3 or time.perf_counter() - began < seconds:
        step()
        steps += 1
    synchronise(device)
    elapsed = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes(step)
    return {
        "images_s": significant(steps * images / elapsed),
        "ms": significant(1e3 * elapsed / steps),
        "steps": steps,
        "warm_up_s": significant(warm_up),
        "peak_gb": significant(peak / 1e9),
    }


def measure_parts(
    train_step: TrainStep, batch, step_ms: float, device: torch.device, seconds: float
) -> dict[str, float]:
    """Return the milliseconds of each part of a step; the backward pass is what the other parts leave of `step_ms`."""
    cfg, detector = train_step.cfg, train_step.detector
    network = PixelDetector(detector, cfg.data)

    def inputs():
        images = batch.images.to(device, non_blocking=True)
        sizes = to_device(torch.tensor(batch.image_sizes), device)
        return network.normalise(images, sizes), pack_targets(batch.targets, device, train_step.capacity)

    compiled = cfg.train.compile != "off"
    compile_with = (lambda f: torch.compile(f, fullgraph=True, dynamic=False)) if compiled else (lambda f: f)
    ends = {}
    with autocast(cfg, device):
        for name, step in network_parts(detector, inputs, compile_with).items():
            ends[name] = median_ms(step, device, seconds)
    parts, before = {}, 0.0
    for name, end in ends.items():
        parts[name], before = end - before, end
    train_step([batch], 1.0)
    parts["optimiser"] = median_ms(train_step.optimizer.step, device, seconds)
    parts["backward"] = step_ms - before - parts["optimiser"]
    return {name: significant(parts[name]) for name in (*ends, "backward", "optimiser")}


def median_ms(step: Step, device: torch.device, seconds: float) -> float:
    """Return the median ms of a call, each waiting for the device."""
    step()
    synchronise(device)
    times, stop = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < stop:
        began = time.perf_counter()
        step()
        synchronise(device)
        times.append(1e3 * (time.perf_counter() - began))
    return median(times)


def varied_steps(cfg: Config, device: torch.device, count: int, seconds: float) -> dict:
    """Count graphs, graph breaks and host syncs of steps whose batches differ in size and numbers of boxes."""
    images, pinned = cfg.data.batch_size, device.type == "cuda"
    train_step = make_train_step("compiled", cfg, device, capacity=100 * images)
    expected = len(cfg.data.buckets)
    watch = GraphWatch(expected)
    with watch:
        list(train_step.compile_ahead(images))
    pixels = [make_batch(size, [0] * images, cfg.head.num_classes, pinned) for size in cfg.data.buckets]
    generator = torch.Generator().manual_seed(0)
    breaks, syncs, done = graph_breaks(), 0, 0
    began = time.perf_counter()
    while done < count and time.perf_counter() - began < seconds:
        batch = pixels[done % expected]
        counts = torch.randint(101, (images,), generator=generator) * (torch.rand(images, generator=generator) > 0.2)
        size, classes = batch.image_sizes[0], cfg.head.num_classes
        batch.targets = [make_target(size, boxes, classes, generator) for boxes in counts.tolist()]
        with watch:
            syncs += count_syncs(lambda batch=batch: train_step([batch], 1.0), device)
        done += 1
    synchronise(device)
    return {
        "steps": done,
        "graphs": watch.graphs,
        "graphs_expected": expected,
        "graph_breaks": graph_breaks() - breaks,
        "host_syncs": syncs if pinned else None,
    }


def count_syncs(step: Step, device: torch.device) -> int:
    """Run a step and return how often the host waits for the device in it."""
    if device.type != "cuda":
        step()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    run(main)
