"""`--plan`: how long a run takes on this machine; a step and some images are timed for it."""

import math
import os
import time
from typing import NamedTuple

import torch

from dwtriton.config.load import override_config
from dwtriton.config.schema import Config
from dwtriton.core import ranks
from dwtriton.core.errors import UserError
from dwtriton.data.buckets import Size, area
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import timed_requests, train_loader
from dwtriton.model.detector import SIZE_DIVISOR, build_detector
from dwtriton.train.estimate import SAVED_BY_COMPILING, compile_seconds, compiling_pays, duration, time_step
from dwtriton.train.memory import state_bytes
from dwtriton.train.plan import Plan
from dwtriton.train.precompile import processes_side_by_side
from dwtriton.train.settle import settle_for_device

EVALUATED = 1 / 3  # of the time that training takes for an image
TIMED_IMAGES, TIMED_AREA = 4, 160 * 224  # that a CPU is timed with, at most: a whole batch may take it minutes


class Forecast(NamedTuple):
    """What a run takes, in seconds."""

    step: float  # of all ranks, without loading
    image: float  # that one core needs to load one
    workers: int
    compile: float  # 0: the run is not compiled
    run: float
    text: str  # for people


def forecast(cfg: Config, train_set: CocoDataset, val_images: int, plan: Plan, device: torch.device) -> Forecast:
    """Time a step and some images, and estimate what the planned run takes.

    Without a GPU up to TIMED_IMAGES images of at most TIMED_AREA pixels are timed in place of a batch's. Raises
    UserError if the network is too large for the machine's memory.
    """
    _check_memory(cfg)
    buckets = [f"data.buckets={[list(size) for size in plan.buckets]}"] if plan.buckets else []
    settled = override_config(settle_for_device(cfg, device), buckets)
    on_gpu, largest = device.type == "cuda", max(plan.buckets or train_set.largest_sizes(), key=area)
    images = cfg.data.batch_size // (ranks.world_size() * cfg.train.accumulate)
    timed, size = (images, largest) if on_gpu else (min(images, TIMED_IMAGES), _smaller(largest))
    with torch.random.fork_rng(devices=[]):
        detector = build_detector(override_config(settled, ["backbone.weights=none"]))
    detector.to(device, memory_format=torch.channels_last)
    step = time_step(settled, detector, device, timed, size) / timed * plan.pixels / area(size)
    step *= images * cfg.train.accumulate

    compiling, compiled = 0.0, "not compiled"
    if settled.train.compile != "off":
        compiling = compile_seconds(len(plan.buckets), processes_side_by_side(settled, images, device), device)
        compiled = f"{len(plan.buckets)} graphs, compiled in about {duration(compiling)}"
    if cfg.train.compile == "auto" and on_gpu:
        pays, compiled = compiling_pays(step, cfg.schedule.epochs * plan.steps, compiling)
        compiling = compiling if pays else 0.0
    if compiling and on_gpu:
        step *= 1 - SAVED_BY_COMPILING

    image = time_loading(train_set)
    workers = train_loader(train_set, settled, ranks.rank(), ranks.world_size()).num_workers
    loading = cfg.data.batch_size / ranks.world_size() * image / max(workers, 1)
    evaluations = -(-cfg.schedule.epochs // cfg.train.evaluate_every)
    evaluated = evaluations * val_images * EVALUATED * step / cfg.data.batch_size
    run = compiling + cfg.schedule.epochs * plan.steps * (max(step, loading) if workers else step + loading) + evaluated
    waits = "; training waits for data: raise data.workers" if workers and loading > step else ""
    text = "\n".join(
        [
            f"a step takes about {step:.3g} s on {device.type}, {cfg.data.batch_size / step:.3g} images/s; {compiled}",
            f"one core loads {1 / image:.3g} images/s, data.workers = {workers}{waits}",
            f"the whole run takes about {duration(run)}, {duration(evaluated)} of it for {evaluations} evaluations",
        ]
    )
    return Forecast(step, image, workers, compiling, run, text)


def _smaller(size: Size) -> Size:
    """Return a size of the same shape that is no larger than TIMED_AREA, but for rounding."""
    scale = min(1.0, math.sqrt(TIMED_AREA / area(size)))
    return tuple(max(1, round(scale * side / SIZE_DIVISOR)) * SIZE_DIVISOR for side in size)


def _check_memory(cfg: Config) -> None:
    needed, memory = state_bytes(cfg), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"weights, gradients and momenta of this network take {needed / 1e9:.0f} GB, and this machine has "
            f"{memory / 1e9:.0f} GB of memory: lower head.channels or head.convs"
        )


def time_loading(dataset: CocoDataset) -> float:
    """Return the seconds in which one core loads an image, without batching it."""
    requests = timed_requests(dataset)
    began = time.perf_counter()
    for request in requests:
        dataset[request]
    return (time.perf_counter() - began) / len(requests)
