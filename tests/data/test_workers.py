"""Loader processes: how many threads they compute with, and what a batch costs the process that gets it."""

import os
import signal
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from dwtriton.config.schema import Config
from dwtriton.data import workers
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import train_loader
from dwtriton.data.workers import choose_workers, leave_signals_to_main

DESCRIPTORS = Path("/proc/self/fd")


class Probe(CocoDataset):
    """Tells in place of an image's path how many threads PyTorch has where it is loaded."""

    def __getitem__(self, item):
        return replace(super().__getitem__(item), path=str(torch.get_num_threads()))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def config(tiny, count):
    data = tiny.write().model_copy(update={"workers": count})
    return Config(data=data, head={"num_classes": 3})


@pytest.mark.parametrize(("count", "threads"), [(0, "2"), (2, "1")])
def test_workers_have_one_thread_each_and_the_main_process_keeps_its_own(tiny, two_threads, count, threads):
    cfg = config(tiny, count)
    batches = list(train_loader(Probe(cfg.data, "train"), cfg))
    assert [batch.paths for batch in batches] == [[threads] * 2] * 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("count", [0, 1])
def test_batches_are_laid_out_pixel_by_pixel_as_the_network_takes_them(tiny, count):
    cfg = config(tiny, count)
    for batch in train_loader(CocoDataset(cfg.data, "train"), cfg):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def items(seconds, count=4):
    for _ in range(count):
        time.sleep(seconds)
        yield None


@pytest.mark.parametrize(
    ("cores", "ranks_here", "images_per_second", "expected"),
    [
        (16, 1, 300, range(7, 12)),  # 20 ms an image: 6 of them, and one more; up to 4 more on a busy machine
        (16, 1, 30, range(2, 4)),
        (16, 8, 300, [1]),  # one of a rank's two cores stays with its main process
        (4, 1, 300, [3]),
        (1, 1, 300, [1]),
    ],
)
def test_workers_follow_from_cores_and_the_time_of_an_image(
    cores, ranks_here, images_per_second, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_here))
    assert choose_workers("auto", items(0.02), images_per_second) in expected
    assert choose_workers("auto") == max(1, cores // ranks_here - 1)  # where nothing can be timed


def test_without_a_gpu_the_main_process_loads_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_workers("auto", items(0.01), 1000) == 0
    assert choose_workers(3) == 3


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="counts open files in /proc")
def test_a_batch_of_a_worker_holds_one_open_file_however_many_targets_it_has(tiny):
    cfg = config(tiny, count=1)
    batches = iter(train_loader(CocoDataset(cfg.data, "train"), cfg))
    first = next(batches)  # opens what the process needs to receive any
    before = len(os.listdir(DESCRIPTORS))
    second = next(batches)
    assert len(first.targets) == len(second.targets) == 2
    assert len(os.listdir(DESCRIPTORS)) <= before + 1


@pytest.fixture
def worker():
    """(a process that waits for signals as a worker does, the event that its main process sets when it ends)"""
    context = get_context("fork")
    ready, main_ends = context.Event(), context.Event()

    def wait():
        leave_signals_to_main(0, main_ends=main_ends)
        ready.set()
        while True:
            signal.pause()

    process = context.Process(target=wait, daemon=True)
    process.start()
    assert ready.wait(30)
    yield process, main_ends
    process.kill()


def test_a_worker_leaves_signals_to_the_main_process_until_that_ends(worker):
    process, main_ends = worker
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(process.pid, number)
    process.join(0.5)
    assert process.is_alive()
    main_ends.set()
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == 0


@pytest.fixture
def short_grace(monkeypatch):
    monkeypatch.setattr(workers, "WORKER_GRACE_SECONDS", 1)


def test_a_worker_does_not_outlive_a_killed_main_process_for_long(short_grace, worker):
    process, _ = worker
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == -signal.SIGALRM
