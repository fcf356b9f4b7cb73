"""torch.compile in training: the same results, one graph for each bucket, and a report of every other graph."""

import copy
import shutil
from functools import partial

import pytest
import torch
from torch._dynamo.callback import CallbackTrigger

from dwtriton import build_detector
from dwtriton.checkpoints.checkpoint import load_checkpoint
from dwtriton.core.targets import pack_targets
from dwtriton.data.loaders import train_loader
from dwtriton.data.prepare import prepare_data
from dwtriton.model.pixels import PixelDetector
from dwtriton.train import compile as compile_module
from dwtriton.train import trainer as trainer_module
from dwtriton.train.metrics import read_metrics
from dwtriton.train.signals import Interrupted
from dwtriton.train.step import TrainStep
from dwtriton.train.trainer import Trainer

CPU = torch.device("cpu")
FROZEN = "backbone.frozen_statistics=true"
ONE_BUCKET = ["data.buckets=[[96, 96]]", "schedule.epochs=1", FROZEN]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def shallow(monkeypatch):
    """One block in each stage of the backbone: half as much code to generate."""

    def build(cfg):
        detector = build_detector(cfg)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            setattr(detector.backbone, stage, getattr(detector.backbone, stage)[:1])
        return detector

    monkeypatch.setattr(trainer_module, "build_detector", build)
    return build


@pytest.fixture
def traced(monkeypatch):
    """Graphs are traced as always, but run as PyTorch operations."""
    monkeypatch.setattr(compile_module.torch, "compile", partial(torch.compile, backend="eager"))


@pytest.fixture
def differentiated(monkeypatch):
    """No code generation, but the backward pass is traced as well, before it runs as PyTorch operations."""
    monkeypatch.setattr(compile_module.torch, "compile", partial(torch.compile, backend="aot_eager"))


def run(cfg, out, console):
    """Train to the end, from what `out` holds or from the beginning."""
    trainer = Trainer(cfg, out, console, resume=(out / "last.pt").exists())
    trainer.fit()
    return trainer


def gradients(detector, batch, cfg, forward=None, capacity=None):
    """Losses and the gradient of every parameter, of a detector in float32 or float64."""
    detector.zero_grad()
    dtype = detector.head.box_conv.weight.dtype
    targets = pack_targets(batch.targets, CPU, capacity)
    if forward is None:
        losses = detector(
            PixelDetector(detector, cfg.data).normalise(batch.images, batch.image_sizes).to(dtype), targets
        )
    else:
        losses = forward(batch.images, torch.tensor(batch.image_sizes), targets)
    sum(losses.values()).backward()
    found = {name: p.grad.double() for name, p in detector.named_parameters() if p.requires_grad}
    return {name: loss.detach().double() for name, loss in losses.items()} | found


@pytest.mark.slow
def test_compiled_steps_are_as_accurate_as_eager_ones_and_resume_bit_for_bit(shallow, tiny, tmp_path, console):
    """With generated code. Losses and gradients against float64, entry by entry."""
    cfg = tiny(*ONE_BUCKET, "train.compile=default", "train.checkpoint_every=3")
    whole = Trainer(cfg, tmp_path / "whole", console)
    step = whole.step

    def copying_step(batches, epoch):
        step(batches, epoch)
        if whole.iteration == 4:  # what a process that is killed now leaves: a checkpoint of iteration 3
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    whole.step = copying_step
    whole.fit()
    assert "compiled 1 graphs in " in console.file.getvalue()
    assert (whole.watch.graphs, whole.iteration) == (1, whole.total)

    detector = whole.detector.train()
    batch = next(iter(train_loader(prepare_data(cfg)[0], cfg)))
    truth = gradients(copy.deepcopy(detector).double(), batch, cfg)
    eager = gradients(detector, batch, cfg)
    compiled = gradients(detector, batch, cfg, whole.train_step.network, whole.train_step.capacity)
    for name, true in truth.items():
        allowed = max(2 * (eager[name] - true).abs().max(), 1e-5 * true.abs().max())
        assert (compiled[name] - true).abs().max() <= allowed, name

    torch._dynamo.reset()  # as in another process: compiled anew, from the code in the cache
    assert load_checkpoint(tmp_path / "killed" / "last.pt").iteration == 3
    run(cfg, tmp_path / "killed", console)
    assert read_metrics(tmp_path / "killed" / "metrics.jsonl") == read_metrics(tmp_path / "whole" / "metrics.jsonl")
    first, second = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "killed"))
    assert all(torch.equal(value, second.model[name]) for name, value in first.model.items())
    torch.testing.assert_close(first.optimizer["state"], second.optimizer["state"], rtol=0, atol=0)


@pytest.mark.parametrize(("ahead", "weight"), [(True, 1.0), (False, 1.0), (True, 0.5)])
def test_there_is_one_graph_for_each_bucket_and_nothing_to_report(
    ahead, weight, traced, shallow, tiny, tmp_path, console
):
    """Whatever the numbers of boxes, crowds among them, and with weights of boxes that many batches lack.

    Compiled before the first step, or each at its first batch.
    """
    settings = ["train.compile=default", f"train.compile_ahead={str(ahead).lower()}", "data.crowd=ignore"]
    settings += ["train.accumulate=2", f"data.class_weights.hourglass={weight}"]
    trainer = run(tiny(*settings), tmp_path / "run", console)
    assert trainer.train_set.weighted == (weight != 1)
    assert trainer.iteration == trainer.total
    assert trainer.watch.graphs == len(trainer.cfg.data.buckets) == 2
    assert trainer.train_step.capacity == trainer.train_set.most_boxes(2)  # images of a micro-batch, not of a step
    assert ("compiled 2 graphs in " in console.file.getvalue()) == ahead
    assert "recompiled in iteration" not in console.file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("assigner", ["fcos", "atss", "simota", "tal", "dual_weight_ablation"])
def test_every_assigner_has_one_graph_for_each_bucket(assigner, traced, shallow, tiny, tmp_path, console):
    cfg = tiny("train.compile=default", "schedule.epochs=1", f"loss.assigner={assigner}")
    trainer = run(cfg, tmp_path / "run", console)
    assert trainer.iteration == trainer.total
    assert trainer.watch.graphs == len(trainer.cfg.data.buckets) == 2
    assert "recompiled in iteration" not in console.file.getvalue()


def test_compiled_and_eager_runs_agree(differentiated, finished, tiny, tmp_path, console):
    """Batch norms train here; compiling ahead must leave no trace in their statistics.

    Later than the first steps the sum alone is compared. The loss gives equal bits for equal inputs, but gradients of
    the network may differ in the last; N, which divides by the spread of a bag's IoUs, then lets the smallest of the
    losses differ by more than their sum.
    """
    run(tiny("train.compile=default"), tmp_path / "run", console)
    rows, ours = (
        [row for row in read_metrics(out / "metrics.jsonl") if row.pop("kind") == "step"]
        for out in (finished[0], tmp_path / "run")
    )
    assert len(ours) == len(rows)
    for own, row in zip(ours[:3], rows):
        assert own == pytest.approx(row, rel=1e-5)
    for own, row in zip(ours, rows):
        assert own["loss"] == pytest.approx(row["loss"], rel=1e-4)


def test_an_unexpected_recompile_is_reported_once_with_its_reason(traced, shallow, tiny, tmp_path, console):
    trainer = Trainer(tiny("train.compile=default", "schedule.epochs=1"), tmp_path / "run", console)
    step = trainer.step

    def step_of_another_size(batches, epoch):
        if trainer.iteration in (2, 4):  # batches of three, then of two
            for batch in batches:
                count = {2: 3, 4: 2}[trainer.iteration]
                batch.images, batch.image_sizes = batch.images[:count], batch.image_sizes[:count]
                batch.targets = batch.targets[:count]
        step(batches, epoch)

    trainer.step = step_of_another_size
    trainer.fit()
    reported = [line for line in console.file.getvalue().splitlines() if "recompiled in iteration" in line]
    assert [line.partition(":")[0] for line in reported] == [
        "recompiled in iteration 3",
        "recompiled in iteration 5",
    ]
    assert "size mismatch at index 0. expected 4, actual 3" in reported[0]


def test_the_watch_reports_each_reason_once():
    watch = compile_module.GraphWatch(expected=1)
    function = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    reported = []
    for size in (2, 3, 3, 4):
        with watch:
            function(torch.zeros(size))
        reported.append(watch.unexpected_recompile())
    function(torch.zeros(5))  # outside the watch
    reported.append(watch.unexpected_recompile())
    assert [reason is not None for reason in reported] == [False, True, False, True, False]
    assert "size mismatch at index 0. expected 2, actual 3" in reported[1]
    assert watch.graphs == 3


def record_cuda_graph():
    """Do what PyTorch does when it records one: tell those who asked."""
    with torch._dynamo.callback_handler.install_callbacks(CallbackTrigger.CUDAGRAPH_RECORDING, "0/0"):
        pass


def test_a_run_records_a_bounded_number_of_cuda_graphs():
    """For each size of batch and each micro-batch of a step; numbers of boxes do not matter."""
    assert compile_module.cuda_graphs("reduce-overhead", batch_sizes=4, micro_batches=1) == 12
    assert compile_module.cuda_graphs("max-autotune", batch_sizes=4, micro_batches=3) == 36
    assert compile_module.cuda_graphs("default", batch_sizes=4, micro_batches=3) == 0
    watch = compile_module.GraphWatch(expected=1, expected_recordings=2)
    told = []
    for _ in range(4):
        with watch:
            record_cuda_graph()
        told.append(watch.unexpected_recordings())
    record_cuda_graph()  # outside the watch
    assert (watch.recorded, told) == (4, [False, False, True, False])


@pytest.fixture
def untraced(monkeypatch):
    """Not even graphs: the steps that would compile the network run eagerly."""
    monkeypatch.setattr(compile_module.torch, "compile", lambda network, **_settings: network)


def assert_untouched(train_step, state, random):
    """Everything that a step depends on is as it was; tensors bit by bit."""
    now = train_step.checkpoint_state()
    for part in ("model", "ema"):
        assert all(torch.equal(value, state[part][name]) for name, value in now[part].items()), part
    assert (now["optimizer"], now["scaler"]) == (state["optimizer"], state["scaler"])
    assert not now["optimizer"]["state"]  # no momenta yet
    assert all(p.grad is None for p in train_step.detector.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_compiling_ahead_changes_nothing_that_a_step_depends_on(untraced, tiny, monkeypatch):
    """Not after any bucket, nor after an error. Batch norms train here, and the forward pass draws random numbers."""
    cfg = tiny("train.compile=default", "train.ema_decay=0.9")
    torch.manual_seed(0)
    detector = build_detector(cfg).train()
    detector.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0] + torch.rand(()),))
    train_step = TrainStep(detector, cfg, CPU, capacity=50)
    train_step.scaler = torch.amp.GradScaler("cpu")  # as in float16, in which CPUs are slow
    before = copy.deepcopy(train_step.checkpoint_state()), torch.get_rng_state()
    ends = 0
    for _ in train_step.compile_ahead(images=4):
        assert_untouched(train_step, *before)
        ends += 1
    assert ends == 2

    def fail(losses):
        assert not torch.equal(detector.backbone.bn1.running_var, before[0]["model"]["backbone.bn1.running_var"])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(train_step.scaler, "scale", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(train_step.compile_ahead(images=4))
    assert_untouched(train_step, *before)


def test_compiling_ahead_runs_all_micro_batches_of_a_step_and_then_records_them(untraced, tiny):
    cfg = tiny("train.compile=default", "train.accumulate=2", "data.batch_size=8")
    train_step = TrainStep(build_detector(cfg).train(), cfg, CPU, capacity=50)
    compute, seen = train_step._losses, []
    head = train_step.detector.head.box_conv.weight

    def losses(batch):
        seen.append((tuple(batch.images.shape), head.grad is not None))
        return compute(batch)

    train_step._losses = losses
    list(train_step.compile_ahead(images=4))
    shapes = [(4, 3, 64, 96)] * 4 + [(4, 3, 96, 64)] * 4
    assert seen == list(zip(shapes, [False, True] * 4))  # the second adds to the gradients of the first


def test_cuda_graphs_are_counted_and_more_than_expected_are_reported_once(untraced, tiny, tmp_path, console):
    trainer = Trainer(tiny("train.compile=default", *ONE_BUCKET), tmp_path / "run", console)
    trainer.watch = compile_module.GraphWatch(expected=1, expected_recordings=3)
    compute, calls = trainer.train_step._losses, []

    def losses(batch):
        calls.append(batch)
        if len(calls) in (2, 5, 6, 7):  # the second while compiling, then in iterations 3, 4 and 5
            record_cuda_graph()
        return compute(batch)

    trainer.train_step._losses = losses
    trainer.fit()
    told = [line for line in console.file.getvalue().splitlines() if "CUDA graphs" in line]
    assert told[0].endswith("one for each batch size; recorded 1 CUDA graphs")
    assert [line.partition(":")[0] for line in told[1:]] == ["recorded more CUDA graphs in iteration 5"]
    assert "TORCH_LOGS=cudagraphs" in told[1]


def test_a_run_stopped_while_it_compiles_is_saved_as_it_began(untraced, tiny, tmp_path, console):
    """Not with the statistics of the black images that it compiles with."""
    trainer = Trainer(tiny("train.compile=default"), tmp_path / "run", console)
    before = copy.deepcopy(trainer.detector.state_dict())
    compile_ahead = trainer.train_step.compile_ahead

    def stopping(images, weighted):
        for _ in compile_ahead(images, weighted):
            trainer.stop_requested = True  # as by Ctrl-C while the first size of batch compiles
            yield

    trainer.train_step.compile_ahead = stopping
    with pytest.raises(Interrupted):
        trainer.fit()
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pt")
    assert checkpoint.iteration == 0
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.model.items())
    again = Trainer(trainer.cfg, tmp_path / "run", console, resume=True)
    assert again.iteration == 0


def test_a_recompile_without_a_known_reason_ends_no_run():
    torch._dynamo.utils.clear_compilation_metrics()
    watch = compile_module.GraphWatch(expected=0)
    with watch:
        torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(2))
    assert watch.unexpected_recompile() == "PyTorch gives no reason"
    assert watch.unexpected_recompile() is None
