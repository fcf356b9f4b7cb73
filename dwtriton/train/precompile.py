"""Compiling every batch size before the first step.

The first is compiled by the run itself. If its code was in no cache on disk, that of the others will not be there
either: they are compiled side by side where the machine has room, each in a process of its own, whose code stays in
torch.compile's caches. The run finds it there, and only traces its network.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import wait
from typing import NamedTuple

import torch

from dwtriton.config.load import override_config
from dwtriton.config.schema import Config
from dwtriton.core import ranks
from dwtriton.data.buckets import Size, area
from dwtriton.data.workers import leave_signals_to_main
from dwtriton.model.detector import build_detector
from dwtriton.train.estimate import remember_compile_seconds
from dwtriton.train.memory import kept_bytes, state_bytes
from dwtriton.train.step import TrainStep

CORES_OF_A_COMPILER = 4  # one traces, the others compile its kernels
MEMORY_FACTOR = 1.5  # what a step takes of a GPU's memory, over what it keeps for its backward pass
CONTEXT_BYTES = 1e9  # of a process on a GPU
SECONDS_BETWEEN_LOOKS = 0.5


class _Graph(NamedTuple):
    """What the graph of a training step is made for."""

    size: Size
    images: int  # of a micro-batch
    capacity: int  # rows that targets are padded to
    weighted: bool  # whether targets have weights


def compile_buckets(train_step: TrainStep, images: int, weighted: bool = False) -> Iterator[tuple[int, str]]:
    """Compile for micro-batches of `images` images of all buckets; `weighted`: their targets have weights.

    Yields how many are finished since the last time, and what is compiled now. Everything that a step depends on is
    unchanged then. Close the iterator to end processes that compile.
    """
    _find_main_module_last()
    compiled, finished = train_step.compile_ahead(images, weighted), 0
    for height, width in train_step.cfg.data.buckets:
        yield finished, f"compiling {height} x {width} since {_clock()}"
        first, began, generated = not finished, time.perf_counter(), _generated_graphs()
        next(compiled)
        finished = 1
        if first and _generated_graphs() > generated:
            remember_compile_seconds(time.perf_counter() - began, train_step.device)
            others = [_Graph(size, images, train_step.capacity, weighted) for size in train_step.cfg.data.buckets[1:]]
            yield from ((0, what) for what in _compile_side_by_side(train_step, others))
    yield finished, "compiled"


def _compile_side_by_side(train_step: TrainStep, graphs: list[_Graph]) -> Iterator[str]:
    """Compile graphs in processes, if there is room for at least two; yield what is compiled now."""
    cfg, device = train_step.cfg, train_step.device
    if device.type == "cuda":
        torch.cuda.empty_cache()  # room for the others
    processes = processes_side_by_side(cfg, graphs[0].images, device) if graphs else 0
    if processes:
        left, since = {graph.size for graph in graphs}, _clock()
        with closing(_run_processes(_compile_one, [(cfg, graph, device) for graph in graphs], processes)) as ended:
            for index in ended:
                if index is None:
                    yield f"compiling side by side {', '.join(f'{h} x {w}' for h, w in sorted(left))} since {since}"
                else:
                    left.remove(graphs[index].size)


def _generated_graphs() -> int:
    """Return how many graphs this process could not take from a cache so far."""
    return torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"]


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def processes_side_by_side(cfg: Config, images: int, device: torch.device) -> int:
    """Return how many processes may compile at a time, by cores and GPU memory: none, or at least two.

    None under torchrun, too: the graphs of several ranks exchange normalisers, so a process alone has others.
    """
    if ranks.under_torchrun():
        return 0
    processes = min(len(cfg.data.buckets) - 1, len(os.sched_getaffinity(0)) // CORES_OF_A_COMPILER)
    if device.type == "cuda" and processes > 1:
        largest = max(cfg.data.buckets, key=area)
        needed = MEMORY_FACTOR * kept_bytes(cfg, images, largest) + state_bytes(cfg) + CONTEXT_BYTES
        processes = min(processes, int(torch.cuda.mem_get_info(device)[0] / needed))
    return processes if processes > 1 else 0


def _run_processes(function: Callable[..., None], calls: list[tuple], processes: int) -> Iterator[int | None]:
    """Make calls in processes of their own; yield the index of each that has ended, and None now and then.

    How they end does not matter: a failure to compile will meet the run itself, which explains it.
    """
    start_process = multiprocessing.get_context("spawn").Process  # a GPU does not survive a fork
    waiting, running = list(enumerate(calls)), {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                index, arguments = waiting.pop(0)
                process = start_process(target=function, args=arguments, daemon=True)
                process.start()
                running[process.sentinel] = process, index
            ended = wait(list(running), timeout=SECONDS_BETWEEN_LOOKS)
            for process, index in map(running.pop, ended):
                process.join()
                yield index
            yield None
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _find_main_module_last() -> None:
    """Let the caches of torch.compile name memory formats in a spawned process as in the run itself.

    Their keys hold pickles, and pickle names a memory format by the first module of `sys.modules` that has imported
    torch: in a spawned process that would be the copy of the main module.
    """
    if "__mp_main__" in sys.modules:
        sys.modules["__mp_main__"] = sys.modules.pop("__mp_main__")


def _compile_one(cfg: Config, graph: _Graph, device: torch.device) -> None:
    """Compile one bucket as `Trainer` would, in a process of its own."""
    leave_signals_to_main()
    _find_main_module_last()
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    cfg = override_config(cfg, [f"data.buckets={[list(graph.size)]}", "backbone.weights=none"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    detector = build_detector(cfg)
    detector.to(device, memory_format=torch.channels_last)
    TrainStep(detector, cfg, device, graph.capacity).rehearse(graph.images, graph.size, graph.weighted)
