"""Peak of the memory that PyTorch's CPU allocator hands out."""

import os
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or else the profiler reports a missing GPU as an error

import torch


def peak_bytes(step: Callable[[], object]) -> int:
    """Most bytes that `step()` holds at once beyond what was there before, by the profiler's record of allocations."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        step()
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
