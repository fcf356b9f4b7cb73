"""The kernels on other inputs than those of the sweep: other logits, dtypes, layouts, classes, levels, and a crowd.

    python -m benchmarks.loss_cases

measures each case once, timed as in benchmarks/loss.py, and writes benchmarks/results/loss_cases/MACHINE.json after
each. `over` is the time over the case's own floor of three trips, `beyond_us` what it takes beyond that floor; a case
that has a target says whether it is met.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.cases import SIDES, Size, make_case
from benchmarks.cases_report import draw, markdown_table
from benchmarks.loss import DTYPES, fields
from benchmarks.machine import find_device, kernel_configs, machine
from benchmarks.methods import make_step
from benchmarks.recording import RESULTS, TOO_LARGE, Results, reason, results_file, significant
from benchmarks.timing import copy_bandwidth, measure
from dwtriton.console.cli import run

CROWD = (4967, *[555] * 32, *[554] * 95)  # boxes of each image: 75,357 in 128


class Setting(NamedTuple):
    """A case of the loss, and what it should not exceed."""

    size: Size = Size()
    batch: int = 16
    boxes: int | tuple[int, ...] = 7
    dtype: str = "bfloat16"
    logits: str = "start"
    layout: str = "channels_last"
    sides: tuple[int, int] = SIDES
    most_over: float | None = None  # times the floor
    most_ms: float | None = None
    most_mb: float | None = None


CASES = {
    "logits of mean -3": Setting(logits="hostile", most_over=1.9),
    "logits of mean -7": Setting(logits="trained", most_over=1.5),
    "float32, logits of mean -3": Setting(dtype="float32", logits="hostile"),
    "128 images of 640x640, 60 classes, 75,357 small boxes": Setting(
        Size(640, 640, 60, (8, 16, 32)), 128, CROWD, sides=(8, 64), most_ms=1.0, most_mb=16
    ),
    "float16": Setting(dtype="float16"),
    "contiguous": Setting(layout="contiguous"),
    "1 class": Setting(Size(classes=1)),
    "3 classes": Setting(Size(classes=3)),
    "20 classes": Setting(Size(classes=20)),
    "365 classes": Setting(Size(classes=365)),
    "1203 classes": Setting(Size(classes=1203), batch=2),
    "1 level": Setting(Size(strides=(8,))),
    "7 levels": Setting(Size(strides=(4, 8, 16, 32, 64, 128, 256)), batch=4),
}


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    device = find_device(args.device)
    results = open_results(args)
    if "copy_gb_s" not in results.content:
        results.content["copy_gb_s"] = significant(copy_bandwidth(device, args.seconds) / 1e9)
    for row in results.missing(planned(args)):
        row |= measure_case(CASES[row["case"]], device, results.content["copy_gb_s"], args.seconds)
        results.add(row)
        figures = f"{row['ms']:g} ms, {row['over']:g} times the floor" if "ms" in row else row["skipped"]
        print(f"{row['case']}: {figures}", flush=True)
    results.plot()
    print(f"{markdown_table(results.content)}\n\nwritten to {args.out}")
    return int(any(row.get("skipped", TOO_LARGE) != TOO_LARGE for row in results.content["rows"]))


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu only with the interpreter")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement, at least one call")
    parser.add_argument("--resume", action="store_true", help="keep rows of the same code, and measure the others")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(arguments)
    args.out = args.out or results_file(find_device(args.device), RESULTS / "loss_cases")
    return args


def open_results(args: argparse.Namespace) -> Results:
    """Return the file of results, with the rows that are kept."""
    head = {"machine": machine(torch.device(args.device)), "case": {"method": "triton"}}
    return Results(args.out, head, ("case",), draw, args.resume)


def planned(args: argparse.Namespace) -> list[dict]:
    """Return the names of the rows to measure."""
    configs = kernel_configs(torch.device(args.device))
    return [{"case": name, "kernel_configs": configs} for name in args.cases]


def measure_case(setting: Setting, device: torch.device, copy_gb_s: float, seconds: float) -> dict:
    """Return the measured fields of a case, or the reason why it failed."""
    size, batch, boxes, dtype, logits, layout, sides, *_ = setting
    try:
        case = make_case(size, batch, boxes, DTYPES[dtype], device, logits, layout, sides)
        measured = measure(make_step("triton", case), device, seconds, capture=device.type == "cuda")
    except Exception as error:
        return {"skipped": reason(error)}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    floor_ms = 3 * sum(level.nbytes for level in case.inputs[0]) / (copy_gb_s * 1e9) * 1e3
    row = fields(measured, sum(level.nbytes for level in case.leaves()), floor_ms)
    over, beyond = measured.ms / floor_ms, 1e3 * (measured.ms - floor_ms)
    row |= {"over": significant(over), "beyond_us": significant(beyond)}
    limits = ((over, setting.most_over), (measured.ms, setting.most_ms), (row["extra_mb"], setting.most_mb))
    given = [(value, limit) for value, limit in limits if limit is not None]
    return row | ({"passed": all(value <= limit for value, limit in given)} if given else {})


if __name__ == "__main__":
    run(main)
