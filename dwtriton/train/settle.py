"""Settings that a config leaves to the machine and the data, settled before a run and recorded in its `config.toml`."""

import time

import torch
from torch import nn

from dwtriton.config.load import override_config
from dwtriton.config.schema import Config
from dwtriton.core import ranks
from dwtriton.core.errors import UserError
from dwtriton.data.buckets import area
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import training_buckets
from dwtriton.model.detector import DualWeightDetector
from dwtriton.train.estimate import compile_seconds, compiling_pays, time_step
from dwtriton.train.precompile import processes_side_by_side

TIMED_STEPS = 4  # of each precision
WORTHWHILE = 1.2  # times faster, above what other work on the machine makes of it


def training_device() -> torch.device:
    """Return this rank's GPU, or the CPU without one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def settle_for_device(cfg: Config, device: torch.device) -> Config:
    """Return the config with `train.precision` and `train.compile` for this device instead of auto.

    Raises UserError if the network is to be compiled for an unknown number of batch sizes, and for CUDA graphs without
    a GPU.
    """
    precision, mode, on_gpu = cfg.train.precision, cfg.train.compile, device.type == "cuda"
    if precision == "auto":
        if on_gpu:
            multiplies_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            multiplies_bfloat16 = cpu_gains_by_bfloat16()
        precision = "bfloat16" if multiplies_bfloat16 else "float32"
    if mode == "auto":
        mode = "default" if on_gpu else "off"  # on a CPU it saves 3% of a step (docs/performance.md#the-first-step)
    if mode != "off" and cfg.data.buckets == 0:
        raise UserError(
            "data.buckets = 0 lets a batch have any size, and torch.compile makes a graph for each: set data.buckets "
            "to a number, or train.compile = off"
        )
    if mode == "reduce-overhead" and not on_gpu:
        raise UserError(
            "train.compile = reduce-overhead records CUDA graphs, and PyTorch finds no GPU: set train.compile = "
            "default, which compiles the same network, or off"
        )
    return override_config(cfg, [f"train.precision={precision}", f"train.compile={mode}"])


def settle_compile(
    cfg: Config, detector: DualWeightDetector, device: torch.device, images: int, steps: int, before: str | None = None
) -> tuple[Config, str]:
    """Return the config with `train.compile` "default" or "off" on a GPU, whichever ends the run sooner, and why.

    It times steps of micro-batches of `images` images; the run has `steps` of them in all. A resumed run stays in its
    mode `before`. All ranks call it, and take what rank 0 finds.
    """
    if before:
        return override_config(cfg, [f"train.compile={before}"]), f"train.compile = {before}, as before"
    processes = processes_side_by_side(cfg, images, device)
    try:
        step_seconds = time_step(cfg, detector, device, images, max(cfg.data.buckets, key=area))
        pays, why = compiling_pays(
            step_seconds * cfg.train.accumulate, steps, compile_seconds(len(cfg.data.buckets), processes, device)
        )
    except torch.OutOfMemoryError:
        pays, why = True, "train.compile = auto is default: a step that is not compiled does not fit into the GPU"
    pays, why = ranks.all_gather_object((pays, why))[0]
    return override_config(cfg, [f"train.compile={'default' if pays else 'off'}"]), why


def cpu_gains_by_bfloat16() -> bool:
    """Return whether rank 0's CPU trains faster in bfloat16: with AMX always, with AVX-512 alone if measured so."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16") or not capabilities.get("avx512_bf16"):
        return bool(capabilities.get("amx_bf16"))
    return ranks.all_gather_object(_gain_of_bfloat16() if ranks.is_main() else 0.0)[0] > WORTHWHILE


def _gain_of_bfloat16() -> float:
    """Return how many times faster one thread trains some convolutions in bfloat16 than in float32; takes a second.

    One, since threads that wait for each other on a busy machine would drown the difference.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        block = nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()] * 3)
    block.to(memory_format=torch.channels_last)
    images = torch.zeros(4, 64, 40, 56).to(memory_format=torch.channels_last).requires_grad_()
    seconds = {False: [], True: []}
    for _ in range(TIMED_STEPS):
        for half, times in seconds.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                block(images).float().sum().backward()
            times.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return min(seconds[False]) / min(seconds[True])


def settle_buckets(cfg: Config, train_set: CocoDataset) -> Config:
    """Return the config with `data.buckets` as sizes. Raises UserError if those of the config do not fit the data."""
    buckets = training_buckets(train_set, cfg)
    return override_config(cfg, [f"data.buckets={[list(bucket) for bucket in buckets]}"]) if buckets else cfg
