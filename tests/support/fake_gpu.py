"""A machine that looks as if it had a GPU, so that what runs there alone can be rehearsed: tensors lie on the CPU."""

import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch.autograd import DeviceType
from torch.overrides import TorchFunctionMode

from benchmarks import step_profile, timing

NAME = "NVIDIA Rehearsal 1GB"


class OnCpu(TorchFunctionMode):
    """Makes every tensor on the CPU that is asked for on a GPU, and pins none."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.pin_memory:
            return args[0]
        if function is torch.device:
            return function(*args)
        return function(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in (kwargs or {}).items()})


def _to_cpu(value):
    is_gpu = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
    return torch.device("cpu") if is_gpu else value


class Event:
    """An event of a stream, by the clock of the host."""

    def __init__(self, **_settings):
        self.time = 0.0

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.time - self.time)


class Graph:
    """A CUDA graph, which holds the results of its capture."""

    def replay(self):
        time.sleep(1e-4)


@contextmanager
def profile(**_settings):
    """A profiler that sees one copy in each of some steps, whatever runs."""
    kernel = SimpleNamespace(
        name="direct_copy_kernel", device_type=DeviceType.CUDA, device_time_total=1.0, is_user_annotation=False
    )
    yield SimpleNamespace(events=lambda: [kernel] * step_profile.STEPS)


def fake_gpu(monkeypatch) -> None:
    """Patch `torch.cuda`, as far as benchmarks use it, until the end of the test."""
    make_generator = torch.Generator
    stream = SimpleNamespace(wait_stream=lambda other: None)
    properties = SimpleNamespace(name=NAME, total_memory=10**9, L2_cache_size=10**6)
    values = {
        "is_available": True,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "get_device_name": NAME,
        "get_device_properties": properties,
        "mem_get_info": (10**9, 10**9),
        "current_stream": stream,
        "Stream": stream,
        **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved"), 10**6),
        **dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode")),
    }
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **_options: value)
    for module in (timing, step_profile):
        monkeypatch.setattr(module, "profile", profile)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": make_generator("cpu"))


@contextmanager
def rehearsal(monkeypatch):
    """A context in which everything runs on the CPU that would run on a GPU."""
    fake_gpu(monkeypatch)
    with OnCpu():
        yield
