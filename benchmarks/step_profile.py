"""Share of the loss in a training step, measured by PyTorch's profiler."""

import os
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler reports a missing GPU as an error

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# How their names begin, forward and backward: the operators of kernels and reference, and what stands for the former
# outside of compiled code
OPERATORS = ("dwtriton::dual_weight", "DualWeightFunction")
STEPS = 3


def loss_share(step: Callable[[], object], device: torch.device) -> float | None:
    """Return the share of the loss's operators, forward and backward, in the time of some steps.

    On a GPU this is the time of the kernels that they launch over that of all kernels and copies; on a CPU, their time
    over that of all operators. None where no operator is found: another loss, or a CUDA graph, which replays kernels
    alone. The operators of the loss do not call each other, so nothing is counted twice.
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
