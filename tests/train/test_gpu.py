"""Training steps on a GPU: no waiting, compiled and captured, the same results."""

import pytest
import torch

from dwtriton import build_detector
from dwtriton.data import prepare_data, train_loader
from dwtriton.train.compiling import GraphWatch
from dwtriton.train.update import Updater
from dwtriton.transfer import Fetched, to_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

SETTINGS = ["optimizer.kind=sgd", "optimizer.lr=0.01", "data.workers=1"]


@pytest.fixture
def make(tiny):
    """make(*overrides) -> (updater of a fresh detector on the GPU, steps of an epoch in page-locked memory)."""

    def make(*overrides: str):
        cfg = tiny(*SETTINGS, *overrides)
        torch.manual_seed(0)
        device = torch.device("cuda")
        detector = build_detector(cfg).to(device, memory_format=torch.channels_last).train()
        data, _ = prepare_data(cfg)
        return Updater(detector, cfg, device, data.most_boxes(4)), [[batch] for batch in train_loader(data, cfg)]

    return make


@pytest.fixture
def sync_is_an_error():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["off", "default", "reduce-overhead"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_host_waits_for_nothing_in_a_step(mode, precision, make, sync_is_an_error):
    """With clipping and moving average; float16 with its loss scale."""
    options = ["optimizer.clip_norm=5.0", "train.ema_decay=0.9", f"train.compile={mode}"]
    updater, steps = make(*options, f"train.precision={precision}")
    if mode != "off":
        list(updater.compile_ahead(4))
    for step in steps[:4]:
        updater.step(step, 1.0)
    torch.cuda.synchronize()
    sync_is_an_error()
    losses = [updater.step(step, 1.0)[1] for step in steps[4:]]
    assert all(values.mean.read().isfinite().all() for values in losses)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_follow_the_eager_ones_from_one_graph_a_bucket(mode, make):
    eager, steps = make("train.compile=off", "backbone.frozen_statistics=true")
    updater, _ = make(f"train.compile={mode}", "backbone.frozen_statistics=true")
    watch = GraphWatch(expected=2)
    with watch:
        list(updater.compile_ahead(4))
    for step in steps:
        expected = eager.step(step, 1.0)[1].mean.read()
        with watch:
            losses = updater.step(step, 1.0)[1].mean.read()
        torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
        assert watch.surprise() is None
    assert watch.graphs == 2


def test_values_are_fetched_as_they_were_when_it_was_ordered():
    values = to_device(torch.arange(1000.0), "cuda")
    fetched = Fetched(values)
    values.zero_()
    assert torch.equal(fetched.read(), torch.arange(1000.0))
