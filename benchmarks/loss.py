"""Time and memory of the loss with its gradient, against a roofline and the alternatives, on a GPU or a CPU.

    python -m benchmarks.loss

sweeps 1 to 1000 boxes an image of 800x1344 with 80 classes and writes benchmarks/results/MACHINE.json and .png. The
methods are listed in methods.py. Nothing is timed if our losses or gradients are wrong.

Memory is the peak of a call beyond inputs and gradients. The floor is the time of three trips of the class logits at
the speed of a copy measured in the same run; the share is the floor over the time. On a GPU all calls start with a cold
L2 cache; the kernels are timed by replays of a CUDA graph, the other methods, which synchronise, by events around an
eager call. The field `timing` of the results says which. Beside it stand the sum of the kernels by the profiler, and
the host's time of an eager call; the host's time with launches that do nothing (host.py) is measured once.
Each row is written at once, with file and hash of the launch configs that the kernels took.
"""

import argparse
import os
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch

from benchmarks.cases import Size, make_case
from benchmarks.checks import Check, replays_the_same_bits, runs_without_syncs, target_checks, worst_error
from benchmarks.machine import find_device, kernel_configs, machine
from benchmarks.methods import METHODS, forget_compiled, free_bytes, graph_breaks, make_step, released_bytes
from benchmarks.recording import OUT_OF_TIME, TOO_LARGE, Results, caption, reason, results_file, significant
from benchmarks.report import draw
from benchmarks.timing import Measured, copy_bandwidth, measure
from dwtriton.console.cli import run
from dwtriton.core.errors import UserError

BOXES = (1, 7, 20, 100, 300, 1000)  # an image; the mean of COCO is 7
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
OURS = ("triton", "eager")
KEYS = ("method", "batch", "dtype", "boxes")  # that name a row


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    device = find_device(args.device)
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    results = open_results(args)
    content = results.content
    if todo := results.missing(planned(args)):
        checks = correctness(args, device)
        kept = [check for check in content["checks"] if check["name"] not in {new["name"] for new in checks}]
        content["checks"] = kept + checks
        if "copy_gb_s" not in content:
            content["copy_gb_s"] = significant(copy_bandwidth(device, args.seconds) / 1e9)
            print(f"copies at {content['copy_gb_s']:g} GB/s", flush=True)
        if find_spec("triton") and "host" not in content:
            from benchmarks.host import host_ms

            ms, launches = host_ms(args.host_calls)
            content["host"] = {"ms": significant(ms), "launches": launches}
        sweep(todo, args, device, results, start)
        results.plot()
    if host := content.get("host"):
        print(f"the host takes {host['ms']:g} ms for a call of the kernels, without the driver's part")
    for check in content["checks"] + list(target_checks(content["rows"])):
        print(f"{'yes' if check['passed'] else 'NO ':4} {check['name']} {check.get('value', '')}")
    print(f"{caption(content)}\nwritten to {args.out}, .png beside it, after {time.perf_counter() - start:.0f} s")
    return int(any("skipped" in row and row["skipped"] != TOO_LARGE for row in ours(content["rows"])))


def open_results(args: argparse.Namespace) -> Results:
    """Return the file of results, with the rows that are kept."""
    device = torch.device(args.device)
    case = {"height": args.height, "width": args.width, "classes": args.classes, "layout": "channels_last"}
    head = {"machine": machine(device), "case": case, "checks": []}
    return Results(args.out, head, KEYS, draw, args.resume)


def planned(args: argparse.Namespace) -> list[dict]:
    """Return the names of the rows to measure, ours first."""
    configs = kernel_configs(torch.device(args.device)) if "triton" in args.methods else None
    rows = product(args.methods, args.batches, args.dtypes, args.boxes)
    return [
        dict(zip(KEYS, row)) | ({"kernel_configs": configs} if configs and row[0] == "triton" else {}) for row in rows
    ]


def ours(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["method"] in OURS]


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all; triton only on a GPU")
    parser.add_argument("--boxes", nargs="+", type=int, metavar="N", help="an image; default: 1 to 1000, 5000 on a GPU")
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", help="default: 16 and 2 on a GPU, 2 on a CPU")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, help="of the logits; default: bfloat16 and float32, float32 on a CPU"
    )
    for name in ("height", "width", "classes"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size(), name))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch on a CPU (default: all cores)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement, at least one call")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds after which baselines are skipped")
    parser.add_argument("--host-calls", type=int, default=100, help="of which the host's time is the median")
    parser.add_argument("--resume", action="store_true", help="keep rows of the same code, and measure the others")
    parser.add_argument("--out", type=Path, help="JSON file; the plot goes beside it")
    args = parser.parse_args(arguments)
    on_gpu = args.device == "cuda"
    args.methods = args.methods or [method for method in METHODS if on_gpu or method != "triton"]
    args.batches = args.batches or ((16, 2) if on_gpu else (2,))
    args.dtypes = args.dtypes or (("bfloat16", "float32") if on_gpu else ("float32",))
    args.boxes = args.boxes or (*BOXES, *((5000,) if on_gpu else ()))
    args.out = args.out or results_file(find_device(args.device))
    return args


def correctness(args: argparse.Namespace, device: torch.device) -> list[Check]:
    """Return the checks to make before anything is timed. Raises UserError if a result of ours is wrong."""
    checks: list[Check] = []
    for method, dtype in product([method for method in OURS if method in args.methods], args.dtypes):
        error = worst_error(method, DTYPES[dtype], device)
        if not error <= 1:
            raise UserError(f"{method} in {dtype} is off by {error:.3g} of what is allowed; nothing is timed")
        name = f"{method}, {dtype}: error over the allowed error"
        checks.append({"name": name, "value": significant(error), "at_most": 1, "passed": True})
    if device.type == "cuda" and "triton" in args.methods:
        size = Size(args.height, args.width, args.classes)
        for dtype in args.dtypes:
            try:
                step = make_step("triton", make_case(size, max(args.batches), 7, DTYPES[dtype], device))
                checks.append({"name": f"{dtype}: no host syncs", "passed": runs_without_syncs(step)})
                checks.append({"name": f"{dtype}: graph replays the same bits", "passed": replays_the_same_bits(step)})
            except torch.OutOfMemoryError:
                print(f"{dtype}, {max(args.batches)} images: {TOO_LARGE}; syncs and graphs are not checked", flush=True)
    return checks


def sweep(todo: list[dict], args: argparse.Namespace, device: torch.device, results: Results, start: float) -> None:
    """Measure the rows, ours first; each is printed and written at once."""
    size = Size(args.height, args.width, args.classes)
    bandwidth = results.content["copy_gb_s"] * 1e9
    capture = all(check["passed"] for check in results.content["checks"])
    begin, group = time.perf_counter(), None
    for number, row in enumerate(todo):
        method, batch, dtype, boxes = (row[key] for key in KEYS)
        if group != (group := (method, batch, dtype)):
            print(f"{METHODS[method]}, {batch} images, {dtype}", flush=True)
            forget_compiled()
        late = method not in OURS and time.perf_counter() - start > args.budget
        skipped = OUT_OF_TIME if late else too_large(method, size, batch, boxes, device)
        if skipped:
            row |= {"skipped": skipped}
        else:
            row |= measure_row(row, size, device, bandwidth, args.seconds, capture and method == "triton")
        results.add(row)
        left = (time.perf_counter() - begin) / (number + 1) * (len(todo) - number - 1)
        print(f"  {describe(row)}   [{number + 1}/{len(todo)}, about {left:.0f} s left]", flush=True)


def too_large(method: str, size: Size, batch: int, boxes: int, device: torch.device) -> str | None:
    """Return why a case needs too much memory, or None."""
    needed, free = released_bytes(size, batch, boxes), free_bytes(device)
    if method == "released" and needed > free:
        return f"needs {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free"
    return None


def measure_row(row: dict, size: Size, device: torch.device, bandwidth: float, seconds: float, capture: bool) -> dict:
    """Return the measured fields of a row, or the reason why it failed."""
    try:
        case = make_case(size, row["batch"], row["boxes"], DTYPES[row["dtype"]], device)
        measured = measure(make_step(row["method"], case), device, seconds, capture)
    except Exception as error:
        return {"skipped": reason(error)}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    floor_ms = 3 * sum(level.nbytes for level in case.inputs[0]) / bandwidth * 1e3
    result = fields(measured, sum(level.nbytes for level in case.leaves()), floor_ms)
    return result | {"graph_breaks": graph_breaks()} if row["method"] == "compiled" else result


def fields(measured: Measured, gradient_bytes: int, floor_ms: float) -> dict:
    return {
        "ms": significant(measured.ms),
        "timing": measured.timing,
        **({"kernels_ms": significant(measured.kernels_ms)} if measured.kernels_ms is not None else {}),
        "wall_ms": significant(measured.wall_ms),
        "host_ms": significant(measured.host_ms),
        "runs": measured.runs,
        "extra_mb": significant((measured.peak_bytes - gradient_bytes) / 1e6),
        "floor_ms": significant(floor_ms),
        "share": significant(floor_ms / measured.ms),
    }


def describe(row: dict) -> str:
    text = f"{row['boxes']:5} boxes  "
    if "skipped" in row:
        return f"{text}skipped: {row['skipped']}"
    return f"{text}{row['ms']:8g} ms  {row['share']:6.1%} of the floor's speed  {row['extra_mb']:8g} MB extra"


if __name__ == "__main__":
    run(main)
