"""Time and memory of one step, and the speed of a copy."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.support.peak import peak_bytes

RUNS = 50  # at most
PROFILED = 5
FLUSHED = 2**28  # bytes at least, and four times the L2 cache
COPIED = 2**30  # bytes, more than any cache holds


class Measured(NamedTuple):
    """Time and memory of a step."""

    ms: float  # measured as `timing` says
    timing: str  # "graph": a replay less one of an empty graph; "events": device time of an eager call; "wall"
    wall_ms: float  # of an eager call, until the device has finished
    host_ms: float  # of an eager call, until it returns
    runs: int
    peak_bytes: int  # most that a call holds at once beyond what was allocated before it
    kernels_ms: float | None = None  # sum over the kernels of a call that was captured


def measure(step: Callable[[], object], device: torch.device, seconds: float, capture: bool) -> Measured:
    """Measure a step for about `seconds`, at least once, after a call to warm up.

    With `capture` the time is that of a CUDA graph; a step that synchronises cannot be captured. Times are medians on a
    GPU and minima on a CPU, which other processes use too.
    """
    step()
    if device.type == "cpu":
        times = _repeat(lambda: _wall_ms(step), seconds)
        return Measured(min(times), "wall", min(times), min(times), len(times), peak_bytes(step))
    flush = _make_flush(device)
    calls = _repeat(lambda: _measure_call(step, flush), seconds)
    event_ms, wall_ms, host_ms, peaks = zip(*calls)
    if not capture:
        return Measured(median(event_ms), "events", median(wall_ms), median(host_ms), len(calls), max(peaks))
    graph, _ = capture_graph(step)
    replays = _repeat(lambda: _replay_ms(graph, flush), seconds)
    ms = median(replays) - _empty_replay_ms(flush)
    sum_ms = kernels_ms(step, flush)
    return Measured(ms, "graph", median(wall_ms), median(host_ms), len(replays), max(peaks), sum_ms)


def kernels_ms(step: Callable[[], object], flush: Callable[[], Tensor]) -> float:
    """Return the sum over the kernels of a call, by the profiler; kernels that the flush uses, too, are left out."""
    own = kernel_times(flush).keys()
    times = kernel_times(lambda: (flush(), step()))
    return sum(time for name, time in times.items() if name not in own)


def kernel_times(run: Callable[[], object]) -> Counter[str]:
    """Return the ms of each kernel in a call, the mean of several."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(PROFILED):
            run()
        torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            times[event.name] += event.device_time_total / 1e3 / PROFILED
    return times


def capture_graph(step: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """Return a CUDA graph of a step, and the outputs that its replays overwrite."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    return graph, outputs


def copy_bandwidth(device: torch.device, seconds: float) -> float:
    """Return the bytes a second, read plus written, of the fastest way to copy within the device.

    The driver's copy of memory and copies by kernels differ by a quarter on some GPUs. The tensors exceed any cache.
    """
    size = COPIED if device.type == "cuda" else COPIED // 4
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    ways = (
        lambda: target.copy_(source),
        lambda: torch.neg(source, out=target),
        lambda: target.view(torch.int64).copy_(source.view(torch.int64)),
    )
    times = [
        measure(way, device, seconds / len(ways), capture).ms
        for way in ways
        for capture in ((False, True) if device.type == "cuda" else (False,))
    ]
    return 2 * size / (min(times) / 1e3)


def _repeat(run: Callable, seconds: float) -> list:
    results = []
    stop = time.perf_counter() + seconds
    while not results or (len(results) < RUNS and time.perf_counter() < stop):
        results.append(run())
    return results


def _wall_ms(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def _make_flush(device: torch.device) -> Callable[[], Tensor]:
    """Return a function that empties the L2 cache by reading: written lines would be flushed in the next step."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.zeros(max(4 * cache, FLUSHED) // 4, device=device)
    return buffer.amax


def _measure_call(step: Callable[[], object], flush: Callable[[], Tensor]) -> tuple[float, float, float, int]:
    """Return ms between events, until the device has finished, and until the call returns; and the peak in bytes."""
    start, end = _events()
    flush()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    start.record()
    step()
    host_ms = 1e3 * (time.perf_counter() - begin)
    end.record()
    torch.cuda.synchronize()
    wall_ms = 1e3 * (time.perf_counter() - begin)
    return start.elapsed_time(end), wall_ms, host_ms, torch.cuda.max_memory_allocated() - before


def _replay_ms(graph: torch.cuda.CUDAGraph, flush: Callable[[], Tensor]) -> float:
    """Return the ms of a replay. It is enqueued while the flush runs, so its launch by the host is not counted."""
    start, end = _events()
    flush()
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def _empty_replay_ms(flush: Callable[[], Tensor]) -> float:
    """Return the ms of replaying a graph in which there is nothing."""
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings(action="ignore"), torch.cuda.graph(graph):  # PyTorch warns of empty graphs
        pass
    return median(_replay_ms(graph, flush) for _ in range(RUNS // 2))


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
