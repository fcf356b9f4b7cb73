"""Share of loss and assignment in a training step, by PyTorch's profiler."""

import os
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or else the profiler reports a missing GPU as an error

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

OPERATORS = "dwtriton::dual_weight"  # begins the names of all of them: kernels and reference, forward and backward
STEPS = 3


def loss_share(step: Callable[[], object], device: torch.device) -> float | None:
    """What the loss's operators, which call none of each other, take of some steps, forward and backward.

    On a GPU of the device's time: the kernels that they launch over all kernels and copies. On a CPU of the time in
    operators. None where they cannot be told apart: another loss, or a CUDA graph, which replays kernels alone.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = profiler.events()
    operators = [e for e in events if e.device_type == DeviceType.CPU and e.name.startswith(OPERATORS)]
    if on_gpu:
        loss = sum(operator.device_time_total for operator in operators)
        on_device = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        whole = sum(event.device_time_total for event in on_device)
    else:
        loss, whole = sum(operator.cpu_time_total for operator in operators), events.self_cpu_time_total
    return loss / whole if loss else None
