"""Training steps of whole detectors: images a second, milliseconds by part, memory, recompilations and host syncs.

    python -m benchmarks.train_step

times steps of r50_1x from the bytes of a batch in CPU memory to the updated weights, with our losses, the released
algorithm, and torchvision's FCOS (see detectors.py), and writes benchmarks/results/train_step/MACHINE.json and .png
after each method; rows of other configs, sizes and numbers of images stand beside each other. A method that fails is
recorded with its error; if one of KERNELS fails, the exit code is 1.

Steps are queued without waiting for the device; images/s are wall-clock rates over all of them. Times of parts
(--parts) are differences between forward passes that end after one part and after the next, each compiled alone (in the
mode default) where the method is compiled; the loader has a benchmark of its own. The share of the loss, and on a GPU
the time of kernels by what they are for, come from the profiler (step_profile.py); the roofline, from the peak rates of
operations and of copies (flops.py). Memory is, on a GPU, the peak of everything allocated; on a CPU, the peak of a step
beyond weights and momenta. The row `varied` counts graphs, graph breaks and host syncs of compiled steps on batches of
all buckets with 0 to 100 boxes an image, some of them without any.
"""

import argparse
import logging
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.detectors import (
    COMPILED,
    OUR_DETECTOR,
    TRAIN_METHODS,
    autocast,
    benchmark_config,
    make_batch,
    make_train_step,
    network_parts,
    torchvision_step,
)
from benchmarks.flops import convolutions, peak_flops, roofline_seconds
from benchmarks.machine import find_device, kernel_configs, machine
from benchmarks.rates import measure_steps, median_ms, start_afresh
from benchmarks.recording import RESULTS, TOO_LARGE, Results, reason, results_file, significant
from benchmarks.step_profile import profile_step
from benchmarks.timing import copy_bandwidth
from benchmarks.train_report import draw, markdown_table
from benchmarks.varied import varied_steps
from dwtriton.config.schema import Config
from dwtriton.console.cli import run
from dwtriton.core.targets import pack_targets
from dwtriton.core.transfer import to_device
from dwtriton.model.pixels import PixelDetector
from dwtriton.train.step import TrainStep

KERNELS = (*COMPILED, "triton", "varied")  # that run the kernels on a GPU; if one fails, the benchmark fails
GPU_ALONE = ("CUDA graphs", "tried convolutions", "triton")
KEYS = ("config", "images", "size", "method")  # that name a row
BOXES = (7, 3, 0, 12, 1, 20, 5, 8)  # of the images of a batch, repeated; the mean of COCO is 7


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    device = find_device(args.device)
    torch._logging.set_logs(all=logging.ERROR)  # not a line for each graph break of torchvision
    start = time.perf_counter()
    results = open_results(args)
    if todo := results.missing(planned(args)):
        size = (args.height, args.width)
        cfg = benchmark_config(args.cfg, [size, size[::-1]], args.images, args.precision, args.mode)
        calls = convolutions(cfg, size, args.images, training=True)
        flops = sum(call.flops for call in calls) / args.images
        peak = peak_flops(results.content["machine"]["name"]) if args.precision == "bfloat16" else None
        if peak and "copy_gb_s" not in results.content:
            results.content["copy_gb_s"] = significant(copy_bandwidth(device, seconds=0.5) / 1e9)
    for row in todo:
        start_afresh(device)
        if row["method"] == "varied":
            row |= varied_row(cfg, device, args)
        else:
            row |= measure_row(row["method"], cfg, size, device, args.seconds, args.parts)
            row["gflop_image"] = significant(flops / 1e9)
            if peak and row["method"] in OUR_DETECTOR and "images_s" in row:
                row["mfu"] = significant(flops * row["images_s"] / peak)
                least = roofline_seconds(calls, peak, 1e9 * results.content["copy_gb_s"])
                row["roofline"] = significant(1e3 * least / row["ms"])
        results.add(row)
        results.plot()
    print(f"{markdown_table(results.content)}\n\nwritten to {args.out}, {time.perf_counter() - start:.0f} s")
    return int(any(row["method"] in KERNELS and row.get("skipped", TOO_LARGE) != TOO_LARGE for row in todo))


def open_results(args: argparse.Namespace) -> Results:
    """Return the file of results, with the rows that are kept."""
    case = {"precision": args.precision, "mode": args.mode}
    return Results(args.out, {"machine": machine(torch.device(args.device)), "case": case}, KEYS, draw, args.resume)


def planned(args: argparse.Namespace) -> list[dict]:
    """Return the names of the rows to measure, ours first."""
    configs = kernel_configs(torch.device(args.device))
    methods = [*args.methods, *(["varied"] if args.varied else [])]
    case = {"config": args.cfg, "images": args.images, "size": f"{args.height}x{args.width}"}
    rows = [case | {"method": method} for method in methods]
    for row in rows:
        if row["method"] in KERNELS and configs:
            row["kernel_configs"] = configs
        if args.parts and row["method"] in OUR_DETECTOR:
            row["with_parts"] = True
    return rows


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cfg", default="r50_1x", help="config (default: %(default)s)")
    parser.add_argument(
        "--methods", nargs="+", choices=TRAIN_METHODS, help="default: all; on a CPU without those of GPUs"
    )
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--images", type=int, help="in a step (default: 16 on a GPU, 2 on a CPU)")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--mode", default="default", help="of torch.compile (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each method, at least three steps")
    parser.add_argument("--parts", action="store_true", help="measure the parts of our steps, too")
    parser.add_argument("--varied", type=int, help="steps of varied batches, 0: none (default: 2000, 10 on a CPU)")
    parser.add_argument("--varied-seconds", type=float, default=240.0, help="limit for them")
    parser.add_argument("--resume", action="store_true", help="keep rows of the same code, and measure the others")
    parser.add_argument("--out", type=Path, help="JSON file; the plot goes beside it")
    args = parser.parse_args(arguments)
    cuda = args.device == "cuda"
    args.methods = args.methods or [method for method in TRAIN_METHODS if cuda or method not in GPU_ALONE]
    args.images = args.images or (16 if cuda else 2)
    args.precision = args.precision or best_precision(cuda)
    args.varied = (2000 if cuda else 10) if args.varied is None else args.varied
    args.out = args.out or results_file(find_device(args.device), RESULTS / "train_step")
    return args


def best_precision(cuda: bool) -> str:
    """Return the precision in which a device trains: bfloat16 on a GPU that has it, float16 on an older one."""
    if not cuda:
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def measure_row(
    method: str, cfg: Config, size: tuple[int, int], device: torch.device, seconds: float, parts: bool
) -> dict:
    """Measure a method; if it fails, the row has what was measured before, and the error as `skipped`."""
    print(f"{TRAIN_METHODS[method]} ...", flush=True)
    count = cfg.data.batch_size
    boxes = [BOXES[i % len(BOXES)] for i in range(count)]
    batch = make_batch(size, boxes, cfg.head.num_classes, pinned=device.type == "cuda")
    row: dict = {}
    try:
        if method in OUR_DETECTOR:
            train_step = make_train_step(method, cfg, device, capacity=100 * count)
            step = partial(train_step, [batch], 1.0)
        else:
            step = torchvision_step(cfg, batch, size, device, compiled=method.endswith("compiled"))
        row |= measure_steps(step, count, device, seconds)
        if method in OUR_DETECTOR or device.type == "cuda":
            row |= profile_step(step, device)
        if parts and method in OUR_DETECTOR:
            row["parts_ms"] = measure_parts(train_step, batch, row["ms"], device, seconds / 4)
    except Exception as error:
        row["skipped"] = reason(error)
    print(f"  {row.get('images_s', row.get('skipped'))} images/s", flush=True)
    return row


def varied_row(cfg: Config, device: torch.device, args: argparse.Namespace) -> dict:
    """Count what varied batches cause, or record the error."""
    print("compiled, varied batches ...", flush=True)
    try:
        return varied_steps(cfg, device, args.varied, args.varied_seconds)
    except Exception as error:
        return {"skipped": reason(error)}


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


if __name__ == "__main__":
    run(main)
