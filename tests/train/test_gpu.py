"""Training steps on a GPU: no waiting, compiled and captured, the same results.

Compiling takes most of the time: the smallest detector, of one size of image and of batch but where a test is about
several, so that tests find in PyTorch's cache what others have compiled.
"""

import warnings

import pytest
import torch

from dwtriton import build_detector
from dwtriton.checkpoints.checkpoint import load_checkpoint
from dwtriton.core.transfer import AsyncHostCopy, to_device
from dwtriton.data.loaders import train_loader
from dwtriton.data.prepare import prepare_data
from dwtriton.train.compile import GraphWatch
from dwtriton.train.signals import Interrupted
from dwtriton.train.step import TrainStep
from dwtriton.train.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

SETTINGS = [
    "optimizer.kind=sgd",
    "optimizer.lr=0.01",
    "data.workers=1",
    "data.buckets=[[96, 96]]",
    "backbone.frozen_statistics=true",
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()  # CUDA graphs and their memory too


@pytest.fixture
def make(tiny):
    """make(*overrides) -> (TrainStep of a fresh detector on the GPU, steps of an epoch in pinned memory)."""

    def make(*overrides: str):
        cfg = tiny(*SETTINGS, *overrides)
        torch.manual_seed(0)
        device = torch.device("cuda")
        detector = build_detector(cfg).to(device, memory_format=torch.channels_last).train()
        data, _ = prepare_data(cfg)
        return TrainStep(detector, cfg, device, data.most_boxes(4)), [[batch] for batch in train_loader(data, cfg)]

    return make


@pytest.fixture
def sync_is_an_error():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["off", "default", "reduce-overhead"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_host_waits_for_nothing_in_a_step(mode, precision, make, sync_is_an_error):
    """With clipping and EMA; float16 with its loss scale."""
    options = ["optimizer.clip_norm=5.0", "train.ema_decay=0.9", f"train.compile={mode}"]
    train_step, steps = make(*options, f"train.precision={precision}")
    if mode != "off":
        list(train_step.compile_ahead(4))
    for step in steps[:4]:
        train_step(step, 1.0)
    torch.cuda.synchronize()
    sync_is_an_error()
    losses = [train_step(step, 1.0)[1] for step in steps[4:]]
    assert all(values.mean.read().isfinite().all() for values in losses)


@pytest.mark.parametrize(
    ("mode", "buckets"),
    [("default", "[[64, 96], [96, 64]]"), ("default", "[[96, 96]]"), ("reduce-overhead", "[[96, 96]]")],
)
def test_compiled_steps_follow_the_eager_ones_from_one_graph_a_bucket(mode, buckets, make, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # float32 in full
    eager, steps = make("train.compile=off", f"data.buckets={buckets}")
    train_step, _ = make(f"train.compile={mode}", f"data.buckets={buckets}")
    expected_graphs = len(train_step.cfg.data.buckets)
    watch = GraphWatch(expected_graphs)
    with watch:
        list(train_step.compile_ahead(4))
    for step in steps:
        expected = eager(step, 1.0)[1].mean.read()
        with watch:
            losses = train_step(step, 1.0)[1].mean.read()
        torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
        assert watch.unexpected_recompile() is None
    assert watch.graphs == expected_graphs


def test_a_compiled_step_copies_next_to_nothing_to_another_layout(make):
    train_step, steps = make("train.compile=default", "train.precision=bfloat16", "backbone.frozen_statistics=true")
    for _ in range(2):
        train_step(steps[0], 1.0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        train_step(steps[0], 1.0)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    assert any("conv" in name or "gemm" in name or "cudnn" in name for name in names)
    assert sum("direct_copy" in name for name in names) <= 5


def test_a_run_that_is_shorter_than_compiling_is_not_compiled(tiny, tmp_path, console):
    trainer = Trainer(tiny(*SETTINGS, "train.compile=auto"), tmp_path / "run", console)
    assert trainer.cfg.train.compile == "off"
    assert f"train.compile = auto is off: {trainer.total} eager steps would take" in trainer.summary()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiling_ahead_leaves_no_trace_on_the_device(mode, make):
    train_step, _ = make(f"train.compile={mode}", "train.precision=float16", "backbone.frozen_statistics=false")
    before = {name: value.clone() for name, value in train_step.detector.state_dict().items()}
    random, random_on_gpu, scale = torch.get_rng_state(), torch.cuda.get_rng_state(), train_step.scaler.get_scale()
    for _ in train_step.compile_ahead(4):
        assert all(torch.equal(value, before[name]) for name, value in train_step.detector.state_dict().items())
        assert all(p.grad is None for p in train_step.detector.parameters())
        assert torch.equal(torch.get_rng_state(), random)
        assert torch.equal(torch.cuda.get_rng_state(), random_on_gpu)
        assert train_step.scaler.get_scale() == scale
    assert not train_step.optimizer.state


def test_micro_batches_of_a_step_add_up_under_cuda_graphs(make, monkeypatch):
    """Gradients of the first micro-batch lie in a graph's memory when the second one runs."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # float32 in full
    settings = ["data.batch_size=8", "train.accumulate=2", "optimizer.lr=1e-9"]
    eager, steps = make("train.compile=off", *settings)
    captured, _ = make("train.compile=reduce-overhead", *settings)
    list(captured.compile_ahead(4))
    batches = [batch for [batch] in steps if batch.images.shape == steps[0][0].images.shape]
    for begin in range(0, len(batches) - 1, 2):  # recorded, then replayed
        micro_batches = batches[begin : begin + 2]
        losses = [train_step(micro_batches, 1.0)[1].own.read() for train_step in (captured, eager)]
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
        gradients = [
            torch.cat([p.grad.flatten() for p in train_step.detector.parameters() if p.requires_grad])
            for train_step in (captured, eager)
        ]
        assert (gradients[0] - gradients[1]).norm() < 1e-2 * gradients[1].norm()


@pytest.mark.parametrize(("accumulate", "buckets"), [(1, "[[96, 96]]"), (2, "[[96, 96]]"), (1, "[[64, 96], [96, 64]]")])
def test_cuda_graphs_give_the_bits_of_compiled_steps(accumulate, buckets, make):
    """Also where sizes of batches and numbers of boxes change from step to step; and no more are recorded than said."""
    options = [f"data.buckets={buckets}", f"data.batch_size={4 * accumulate}", f"train.accumulate={accumulate}"]
    options.append("train.precision=bfloat16")
    plain, steps = make("train.compile=default", *options)
    recorded, _ = make("train.compile=reduce-overhead", *options)
    batches = [batch for [batch] in steps]
    one_size = len(recorded.cfg.data.buckets) == 1
    steps = [batches[i : i + accumulate] for i in range(0, len(batches) - accumulate + 1, accumulate)]
    assert one_size or len({step[0].images.shape for step in steps}) == 2
    watch = GraphWatch(len(recorded.cfg.data.buckets))
    with watch:
        list(recorded.compile_ahead(4))
    assert 0 < watch.recorded <= 2 * watch.expected * accumulate  # forward and backward
    found = watch.recorded
    for step in steps:
        expected = plain(step, 1.0)[1].own.read()
        with watch:
            losses = recorded(step, 1.0)[1].own.read()
        assert torch.equal(losses, expected)
    assert watch.recorded == found
    for (name, value), other in zip(recorded.detector.state_dict().items(), plain.detector.state_dict().values()):
        assert torch.equal(value, other), name


TOWERS = ["head.channels=256", "head.convs=4", "head.groups=32"]  # of all published configs
SCALES = "data.short_side=[48, 64]"
RESUMED = {  # compiled, with narrow towers: those of the configs would take minutes
    "r50_1x": ["train.compile=off", *TOWERS],
    "r101_ms_2x": ["train.compile=off", *TOWERS, "backbone.depth=101", SCALES],
    "compiled": ["train.compile=default"],
    "compiled, several scales": ["train.compile=default", SCALES],
    "CUDA graphs": ["train.compile=reduce-overhead", "data.buckets=[[96, 96]]"],
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(settings, tiny, tmp_path, console):
    """The backbones of r50_1x and r101_ms_2x."""
    backbone = ["backbone.depth=50", "backbone.frozen_stages=1", "backbone.frozen_statistics=true"]
    settings = [*backbone, "train.precision=bfloat16", *settings]
    cfg = tiny(*settings, "schedule.epochs=1", "optimizer.kind=sgd", "optimizer.lr=0.01")
    Trainer(cfg, tmp_path / "whole", console).fit()
    stopped = Trainer(cfg, tmp_path / "run", console)
    step = stopped.step

    def stopping_step(batches, epoch):
        step(batches, epoch)
        stopped.stop_requested = stopped.iteration == 3

    stopped.step = stopping_step
    with pytest.raises(Interrupted):
        stopped.fit()
    Trainer(cfg, tmp_path / "run", console, resume=True).fit()
    first, second = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "run"))
    assert first.iteration == second.iteration > 3
    assert all(torch.equal(value, second.model[name]) for name, value in first.model.items())
    torch.testing.assert_close(first.optimizer["state"], second.optimizer["state"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("setting", "repeats"),
    [("backbone.depth=50", True), ("head.refine=true", False), ("head.deformable=true", False)],
)
def test_pytorch_calls_no_step_nondeterministic_but_those_that_the_page_names(setting, repeats, make):
    """docs/performance.md; eager, where every operation is asked."""
    train_step, steps = make("train.compile=off", "backbone.frozen_stages=1", "train.precision=bfloat16", setting)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_step(steps[0], 1.0)
    finally:
        torch.use_deterministic_algorithms(False)
    told = [str(warning.message) for warning in caught if "deterministic implementation" in str(warning.message)]
    assert (not told) == repeats, told


def test_values_are_copied_as_they_were_when_the_copy_was_queued():
    values = to_device(torch.arange(1000.0), "cuda")
    copied = AsyncHostCopy(values)
    values.zero_()
    assert torch.equal(copied.read(), torch.arange(1000.0))
