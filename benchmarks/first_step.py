"""Seconds from the launch of a training to the end of its first step, with nothing compiled before and with all.

    python -m benchmarks.first_step --cfg r50_1x --height 800 --width 1344 --images 16

starts itself twice in a process of its own, with one empty folder for what torch.compile and Triton keep.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

LAUNCHED = "BENCHMARK_LAUNCHED"


def seconds_to_first_step(args: argparse.Namespace) -> dict[str, float]:
    """{"cold": ..., "warm": ...} for the config, sizes, precision and mode of the benchmark's arguments.

    Raises RuntimeError if a start fails.
    """
    names = ("cfg", "height", "width", "images", "precision", "mode", "device")
    command = [sys.executable, "-m", "benchmarks.first_step"]
    command += [part for name in names for part in (f"--{name}", str(getattr(args, name)))]
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
        for state in ("cold", "warm"):
            environment = {**os.environ, **caches, LAUNCHED: str(time.time())}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{state} start failed: {done.stderr.strip().rpartition(chr(10))[2]}")
            seconds[state] = float(done.stdout.splitlines()[-1])
    return seconds


def first_step(args: argparse.Namespace) -> None:
    """Compile for both orientations and take one step; prints the seconds since the launch."""
    import torch

    from benchmarks.detectors import benchmark_config, make_batch, make_train_step

    device, size = torch.device(args.device), (args.height, args.width)
    cfg = benchmark_config(args.cfg, [size, size[::-1]], args.images, args.precision, args.mode)
    train_step = make_train_step("compiled", cfg, device, capacity=100 * args.images)
    list(train_step.compile_ahead(args.images))
    batch = make_batch(size, [7] * args.images, cfg.head.num_classes, pinned=device.type == "cuda")
    train_step([batch], 1.0)[1].mean.read()
    print(f"{time.time() - float(os.environ[LAUNCHED]):.3g}")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cfg", default="r50_1x")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--mode", default="default")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = read_arguments()
    if LAUNCHED in os.environ:
        first_step(arguments)
    else:
        print(seconds_to_first_step(arguments))
