"""Measurements on a GPU in slices of a few minutes.

    python -m benchmarks.slices kernels    # tuning, the loss and its baselines
    python -m benchmarks.slices steps      # training steps of r50_1x
    python -m benchmarks.slices more       # everything else

A slice is a list of benchmarks, each in a process of its own, so that one which hangs or breaks the GPU's context
leaves the others. Rows that are there already, of the same code and launch configs, are not measured again: a slice
that was cut off or had too little time goes on when it is started again. The last lines name the rows that cannot be
measured here and those that are missing. Exit code 0: every row is there; 1: one of ours failed; 2: nothing can be
measured here; 3: rows are missing.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch

from benchmarks.flops import peak_flops
from benchmarks.machine import ROOT, kernel_configs
from benchmarks.recording import Results
from dwtriton.console.cli import run
from dwtriton.core.errors import UserError

TUNED = ROOT / "dwtriton" / "kernels" / "tuned"  # where tuning leaves its table, to be committed
LEAST = 5.0  # seconds below which no benchmark is started


class Part(NamedTuple):
    """A benchmark with its arguments, and the seconds after which it is stopped."""

    module: str
    arguments: str
    cap: float

    def words(self) -> list[str]:
        return shlex.split(self.arguments)

    def missing(self) -> tuple[Results, list[dict]]:
        """Return the file of results and the rows that this part still has to add to it."""
        module = import_module(self.module)
        args = module.read_arguments(self.words())
        results = module.open_results(args)
        return results, results.missing(module.planned(args))


LOSS = "--resume --seconds 0.4"
BASELINES = "--resume --seconds 0.2 --batches 16 --dtypes bfloat16 --methods"
STEPS = "--resume --seconds 6 --varied 0 --methods"
PREDICT = "--resume --seconds 3 --methods"
SLICES = {  # ours first
    "kernels": [
        Part("dwtriton.tune", "--check --seconds 40", 100),
        Part("benchmarks.loss", f"{LOSS} --methods triton", 90),
        Part("benchmarks.loss_cases", LOSS, 60),
        *(Part("benchmarks.loss", f"{BASELINES} {name} --boxes 7", 40) for name in ("eager", "fcos", "released")),
        Part("benchmarks.loss", f"{BASELINES} compiled --boxes 7", 60),
    ],
    "steps": [
        Part("benchmarks.train_step", f"{STEPS} compiled", 130),
        *(Part("benchmarks.train_step", f"{STEPS} {name}", 50) for name in ("triton", "torchvision", "released")),
    ],
    "more": [
        *(
            Part("benchmarks.loss", f"{BASELINES} {name} --boxes 100 1000", 60)
            for name in ("eager", "fcos", "released")
        ),
        Part("benchmarks.train_step", f"{STEPS} compiled --cfg r50_refine_1x", 130),
        Part("benchmarks.train_step", f"{STEPS} triton --cfg r50_refine_1x", 50),
        Part("benchmarks.train_step", f"{STEPS} compiled --cfg r50_refine_ms_2x --height 960 --width 1344", 130),
        *(Part("benchmarks.train_step", f"{STEPS} {name} --images 2", 130) for name in ("compiled", "'CUDA graphs'")),
        *(Part("benchmarks.train_step", f"{STEPS} {name} --images 2", 50) for name in ("triton", "torchvision")),
        Part("benchmarks.frozen", "--resume --seconds 0.3", 60),
        Part("benchmarks.predict", f"{PREDICT} compiled", 130),
        *(Part("benchmarks.predict", f"{PREDICT} {name}", 50) for name in ("eager", "torchvision")),
        Part("benchmarks.train_step", f"{STEPS} 'tried convolutions'", 130),
        Part("benchmarks.train_step", f"{STEPS} eager", 50),
        Part("benchmarks.train_step", f"{STEPS} compiled triton --parts", 200),
        Part("benchmarks.train_step", "--resume --methods compiled --varied 2000 --varied-seconds 120", 200),
        Part("benchmarks.train_step", f"{STEPS} 'torchvision compiled'", 120),
        Part("benchmarks.predict", f"{PREDICT} 'torchvision compiled'", 120),
    ],
}


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    look_at_gpu(args.slice)
    os.environ["DWTRITON_CACHE"] = str(TUNED)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    deadline = time.monotonic() + 60 * args.minutes
    failed = False
    for part in SLICES[args.slice]:
        failed |= run_part(part, deadline) in (1, 2)  # an error in one line is one, too
    skipped, missing = state(SLICES[args.slice])
    print(f"cannot be measured here: {'; '.join(skipped) or 'nothing'}")
    print(f"missing: {'; '.join(missing) or 'nothing'}" + (f" (make gpu-{args.slice} goes on)" if missing else ""))
    return 1 if failed else 3 if missing else 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slice", choices=SLICES)
    parser.add_argument("--minutes", type=float, default=4.0, help="for all of it (default: %(default)g)")
    return parser


def look_at_gpu(name: str) -> None:
    """Say in a line what cannot be measured on this GPU. Raises UserError if nothing can."""
    if not torch.cuda.is_available():
        raise UserError(f"gpu-{name}: PyTorch finds no GPU of NVIDIA or AMD; nothing can be measured")
    if find_spec("triton") is None:
        raise UserError(f"gpu-{name}: Triton is not installed; install it to run the kernels")
    if missing := left_out(name, torch.cuda.get_device_name()):
        print(f"{torch.cuda.get_device_name()}, left out: {'; '.join(missing)}. Everything else is measured")


def left_out(name: str, gpu: str) -> list[str]:
    """Return what a slice cannot measure on this GPU."""
    missing = []
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        instead = {"kernels": "rows of the loss fail", "steps": "steps run in float16"}
        missing.append(f"bfloat16, which it lacks ({instead.get(name, ', '.join(instead.values()))})")
    if name != "kernels" and peak_flops(gpu) is None:
        missing.append("shares of its peak rate and the roofline, as it is not in benchmarks/flops.py")
    if torch.version.hip is not None:
        missing.append("the driver's version, for which only NVIDIA's is asked")
    return missing


def run_part(part: Part, deadline: float) -> int:
    """Run a benchmark until none of its rows is missing, or the time is up; return its exit code, 1 if ours failed.

    A row in which the process crashes, or which alone takes longer than the part may, is recorded as skipped. One of
    ours that takes longer stays missing: it is tried again, then with what is compiled already.
    """
    if part.module == "dwtriton.tune":
        return 0 if is_tuned() else run_command(part, min(part.cap, deadline - time.monotonic())) or 0
    failed = False
    while part.missing()[1]:
        left = min(part.cap, deadline - time.monotonic())
        if left < LEAST:
            break
        code = run_command(part, left)
        results, missing = part.missing()
        if code in (0, 1, 2):
            return code or int(failed)
        ours = bool(missing) and "kernel_configs" in missing[0]
        if not missing or (code is None and (ours or left < part.cap or len(missing) > 1)):
            break
        problem = f"not finished within {left:.0f} s" if code is None else f"its process ended with code {code}"
        results.add(missing[0] | {"skipped": problem})
        print(f"{name_of(results, missing[0])}: {problem}", flush=True)
        failed |= ours
    return int(failed)


def run_command(part: Part, seconds: float) -> int | None:
    """Run a benchmark in a process of its own; return its exit code, or None if it had to be stopped."""
    if seconds < LEAST:
        return None
    print(f"--- {part.module} {part.arguments}", flush=True)
    command = [sys.executable, "-m", part.module, *part.words()]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds:.0f} s", flush=True)
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that compile for it
            process.wait()


def is_tuned() -> bool:
    """Return whether the loss was measured with the table that is there, by the code that is there."""
    results, _ = Part("benchmarks.loss", LOSS, 0).missing()
    configs = kernel_configs(torch.device("cuda"))
    return configs != "defaults" and any(row.get("kernel_configs") == configs for row in results.content["rows"])


def state(parts: list[Part]) -> tuple[list[str], list[str]]:
    """Return the rows of a slice that were skipped, with the reason, and those that are missing."""
    skipped, missing = {}, []
    for part in parts:
        if part.module == "dwtriton.tune":
            continue
        results, absent = part.missing()
        missing += [name_of(results, row) for row in absent]
        for row in results.content["rows"]:
            if "skipped" in row and row not in absent:
                skipped[name_of(results, row)] = row["skipped"]
    return [f"{name} ({reason})" for name, reason in skipped.items()], list(dict.fromkeys(missing))


def name_of(results: Results, row: dict) -> str:
    return " ".join(str(row[key]) for key in results.keys)


if __name__ == "__main__":
    run(main)
