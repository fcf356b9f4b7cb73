"""Where the time of a training step goes, measured by PyTorch's profiler."""

import os
from collections import Counter
from collections.abc import Callable, Iterable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler reports a missing GPU as an error

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.kernel_names import DIRECT_COPY, PARTS, part_of
from benchmarks.recording import significant

# How their names begin, forward and backward: the operators of kernels and reference, and what stands for the former
# outside of compiled code
OPERATORS = ("dwtriton::dual_weight", "DualWeightFunction")
STEPS = 3


def profile_step(step: Callable[[], object], device: torch.device) -> dict:
    """Return fields of a row: `loss_share`, if it is known, and on a GPU those of `by_kernel`."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = profiler.events()
    share = loss_share(events, on_gpu)
    return ({"loss_share": significant(share)} if share else {}) | (by_kernel(events) if on_gpu else {})


def loss_share(events: Iterable[FunctionEvent], on_gpu: bool) -> float | None:
    """Return the share of the loss's operators, forward and backward, in the time of some steps.

    On a GPU this is the time of the kernels that they launch over that of all kernels and copies; on a CPU, their time
    over that of all operators. None where no operator is found: another loss, or a CUDA graph, which replays kernels
    alone. The operators of the loss do not call each other, so nothing is counted twice.
    """
    operators = [e for e in events if e.device_type == DeviceType.CPU and e.name.startswith(OPERATORS)]
    if on_gpu:
        loss = sum(operator.device_time_total for operator in operators)
        whole = sum(kernel.device_time_total for kernel in _kernels(events))
    else:
        loss, whole = sum(operator.cpu_time_total for operator in operators), events.self_cpu_time_total
    return loss / whole if loss else None


def by_kernel(events: Iterable[FunctionEvent]) -> dict:
    """Return the device's milliseconds of a step by part, as `kernels_ms`, and its `direct_copies`; {} without any."""
    ms, copies = Counter(), 0
    for kernel in _kernels(events):
        ms[part_of(kernel.name)] += kernel.device_time_total / 1e3 / STEPS
        copies += DIRECT_COPY in kernel.name
    if not ms:
        return {}
    return {"kernels_ms": {part: significant(ms[part]) for part in PARTS}, "direct_copies": significant(copies / STEPS)}


def _kernels(events: Iterable[FunctionEvent]) -> list[FunctionEvent]:
    """What ran on the device, copies of memory among it."""
    return [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
