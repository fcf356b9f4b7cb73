"""Rates and memory of steps of whole detectors, which follow each other without waiting."""

import gc
import time
from statistics import median

import torch

from benchmarks.detectors import Step
from benchmarks.recording import significant
from tests.support.peak import peak_bytes

WARM_UP_STEPS = 3


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


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
