"""How long a run takes on this machine, and whether compiling pays: steps and images are timed before it begins."""

import json
import math
import time
from contextlib import suppress
from pathlib import Path

import torch

from dwtriton.config.load import override_config
from dwtriton.config.schema import Config
from dwtriton.core.errors import RunError, UserError
from dwtriton.core.files import make_folder, write_text
from dwtriton.data.buckets import Size
from dwtriton.kernels.tuning import cache_table
from dwtriton.model.detector import DualWeightDetector
from dwtriton.train.step import TrainStep

TIMED_STEPS = 3  # after one that warms up
SAVED_BY_COMPILING = 0.48  # of an eager step: r50_1x, 16 images, bfloat16, H100 (docs/performance.md)
SECONDS_A_GRAPH = 69.0  # where none was compiled yet: `shapes`, on an H100's machine with other work


def time_step(cfg: Config, detector: DualWeightDetector, device: torch.device, images: int, size: Size) -> float:
    """Return the seconds of a micro-batch of `images` images of (h, w): what an eager step does, but for its update.

    Nothing changes that a step depends on (`TrainStep.rehearse`). Raises torch.OutOfMemoryError.
    """
    step = TrainStep(detector, override_config(cfg, ["train.compile=off", "train.accumulate=1"]), device)
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        _wait(device)
        began = time.perf_counter()
        step.rehearse(images, size)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)  # other work on the machine only adds to it


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compile_seconds(graphs: int, processes: int, device: torch.device) -> float:
    """Return how long compiling takes if the first graph is made alone, then `processes` at a time.

    A graph takes what this machine took for the last one, if it is known (`remember_compile_seconds`).
    """
    seconds = SECONDS_A_GRAPH
    with suppress(OSError, ValueError, KeyError, TypeError):
        seconds = float(json.loads(_record(device).read_text(encoding="utf-8"))["seconds_a_graph"])
    return seconds * (1 + math.ceil((graphs - 1) / max(processes, 1)))


def remember_compile_seconds(seconds: float, device: torch.device) -> None:
    """Keep how long one graph took whose code was in no cache, if the user's cache folder can be written."""
    path = _record(device)
    with suppress(RunError, UserError):
        make_folder(path.parent)
        write_text(path, json.dumps({"seconds_a_graph": round(seconds, 1), "torch": torch.__version__}))


def _record(device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    table = cache_table(name)
    return table.with_name(f"compile-{table.name}")


def compiling_pays(step_seconds: float, steps: int, seconds_to_compile: float) -> tuple[bool, str]:
    """Return whether a run on a GPU is over sooner if it is compiled, and the figures that say so."""
    eager = step_seconds * steps
    saved = SAVED_BY_COMPILING * eager
    pays = saved > seconds_to_compile
    return pays, (
        f"train.compile = auto is {'default' if pays else 'off'}: {steps} eager steps would take about "
        f"{duration(eager)}; compiling saves about {duration(saved)} of that and takes {duration(seconds_to_compile)}"
    )


def duration(seconds: float) -> str:
    """Return a duration for people: "43 s", "12 min" or "14.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
