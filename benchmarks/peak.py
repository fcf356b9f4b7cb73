"""Peak of the memory that PyTorch's CPU allocator hands out."""

from collections.abc import Callable

import torch


def peak_bytes(step: Callable[[], object]) -> int:
    """Most bytes that `step()` holds at once beyond what was there before, by the profiler's record of allocations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
