"""Compiled steps on batches of all sizes and numbers of boxes: graphs, graph breaks and host syncs are counted."""

import time
import warnings

import torch

from benchmarks.detectors import Step, make_batch, make_target, make_train_step
from benchmarks.methods import graph_breaks
from benchmarks.rates import synchronise
from dwtriton.config.schema import Config
from dwtriton.train.compile import GraphWatch


def varied_steps(cfg: Config, device: torch.device, count: int, seconds: float) -> dict:
    """Count graphs, graph breaks and host syncs of steps whose batches differ in size and numbers of boxes."""
    images, pinned = cfg.data.batch_size, device.type == "cuda"
    train_step = make_train_step("compiled", cfg, device, capacity=100 * images)
    expected = len(cfg.data.buckets)
    watch = GraphWatch(expected)
    with watch:
        list(train_step.compile_ahead(images))
    pixels = [make_batch(size, [0] * images, cfg.head.num_classes, pinned) for size in cfg.data.buckets]
    generator = torch.Generator().manual_seed(0)
    breaks, syncs, done = graph_breaks(), 0, 0
    began = time.perf_counter()
    while done < count and time.perf_counter() - began < seconds:
        batch = pixels[done % expected]
        counts = torch.randint(101, (images,), generator=generator) * (torch.rand(images, generator=generator) > 0.2)
        size, classes = batch.image_sizes[0], cfg.head.num_classes
        batch.targets = [make_target(size, boxes, classes, generator) for boxes in counts.tolist()]
        with watch:
            syncs += count_syncs(lambda batch=batch: train_step([batch], 1.0), device)
        done += 1
    synchronise(device)
    return {
        "steps": done,
        "graphs": watch.graphs,
        "graphs_expected": expected,
        "graph_breaks": graph_breaks() - breaks,
        "host_syncs": syncs if pinned else None,
    }


def count_syncs(step: Step, device: torch.device) -> int:
    """Run a step and return how often the host waits for the device in it."""
    if device.type != "cuda":
        step()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
