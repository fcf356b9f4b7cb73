"""Loader processes: how many threads they compute with, and what a batch costs the process that gets it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dwtriton.config.schema import Config
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import train_loader

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


def config(tiny, workers):
    data = tiny.write().model_copy(update={"workers": workers})
    return Config(data=data, head={"num_classes": 3})


@pytest.mark.parametrize(("workers", "threads"), [(0, "2"), (2, "1")])
def test_workers_have_one_thread_each_and_the_main_process_keeps_its_own(tiny, two_threads, workers, threads):
    cfg = config(tiny, workers)
    batches = list(train_loader(Probe(cfg.data, "train"), cfg))
    assert [batch.paths for batch in batches] == [[threads] * 2] * 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_laid_out_pixel_by_pixel_as_the_network_takes_them(tiny, workers):
    cfg = config(tiny, workers)
    for batch in train_loader(CocoDataset(cfg.data, "train"), cfg):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="counts open files in /proc")
def test_a_batch_of_a_worker_holds_one_open_file_however_many_targets_it_has(tiny):
    cfg = config(tiny, workers=1)
    batches = iter(train_loader(CocoDataset(cfg.data, "train"), cfg))
    first = next(batches)  # opens what the process needs to receive any
    before = len(os.listdir(DESCRIPTORS))
    second = next(batches)
    assert len(first.targets) == len(second.targets) == 2
    assert len(os.listdir(DESCRIPTORS)) <= before + 1
