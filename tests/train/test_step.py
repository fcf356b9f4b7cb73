"""One optimiser step: accumulation, gradient clipping, loss scale, EMA; and starting from a checkpoint."""

import copy

import pytest
import torch

from dwtriton import build_detector
from dwtriton.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dwtriton.config.load import override_config
from dwtriton.config.schema import DataConfig
from dwtriton.core.errors import UserError
from dwtriton.core.targets import pack_targets
from dwtriton.data.loaders import train_loader
from dwtriton.data.prepare import prepare_data
from dwtriton.train.metrics import read_metrics
from dwtriton.train.signals import Interrupted
from dwtriton.train.step import TrainStep
from dwtriton.train.trainer import Trainer

CPU = torch.device("cpu")
PLAIN_SGD = ["optimizer.kind=sgd", "optimizer.lr=0.04", "optimizer.momentum=0.0", "optimizer.weight_decay=0.0"]
FROZEN = "backbone.frozen_statistics=true"  # nothing but an update changes the detector


@pytest.fixture
def make(tiny):
    """make(*overrides) -> (TrainStep of a fresh detector, micro-batches of its first steps)."""

    def make(*overrides: str):
        cfg = tiny(FROZEN, *overrides)
        torch.manual_seed(0)
        detector = build_detector(cfg).train()
        batches = list(train_loader(prepare_data(cfg)[0], cfg))
        micro_batches = cfg.train.accumulate
        return TrainStep(detector, cfg, CPU), [
            batches[i : i + micro_batches] for i in range(0, len(batches), micro_batches)
        ]

    return make


def weights(train_step):
    return {name: p.detach().clone() for name, p in train_step.detector.named_parameters()}


def size_needed(batch):
    """The least multiples of 32 in which the images of a batch fit."""
    return [-(-max(size[axis] for size in batch.image_sizes) // 32) * 32 for axis in (0, 1)]


def gradients(detector, batch, size=None):
    """The gradient of every parameter for a batch padded to `size` (h, w), in a copy of the detector."""
    height, width = size or batch.images.shape[2:]
    padded = torch.zeros(len(batch), 3, height, width)
    for image, loaded, (h, w) in zip(padded, batch.images, batch.image_sizes):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DataConfig().mean, DataConfig().std))
        image[:, :h, :w] = (loaded[:, :h, :w] - mean) / std
    detector = copy.deepcopy(detector)
    padded = padded.to(memory_format=torch.channels_last)  # or else convolutions add in another order
    sum(detector(padded, pack_targets(batch.targets, CPU)).values()).backward()
    return {name: p.grad for name, p in detector.named_parameters()}


def test_accumulation_takes_the_mean_gradient_of_its_micro_batches_padded_to_one_size(make):
    settings = ["train.accumulate=2", "data.short_side=[64, 96]", "data.long_side=160", "data.buckets=0"]
    train_step, steps = make(*PLAIN_SGD, *settings)
    micro_batches = next(step for step in steps if size_needed(step[0]) != size_needed(step[1]))
    assert [len(batch) for batch in micro_batches] == [2, 2]
    before = weights(train_step)
    size = [max(size_needed(batch)[axis] for batch in micro_batches) for axis in (0, 1)]
    assert [list(batch.images.shape[2:]) for batch in micro_batches] == [size, size]
    expected = [gradients(train_step.detector, batch, size) for batch in micro_batches]
    lr, losses = train_step(micro_batches, 1.0)
    assert lr == 0.04 * 4 / 16
    assert losses.own.read().shape == (2, 4)
    torch.testing.assert_close(losses.mean.read(), losses.own.read().mean(0))
    after = {name: before[name] - lr * (expected[0][name] + expected[1][name]) / 2 for name in before}
    torch.testing.assert_close(weights(train_step), after, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_clipping_scales_the_gradient_down_to_the_norm_and_never_up(share, make):
    train_step, (micro_batches, *_) = make(*PLAIN_SGD)
    gradient = gradients(train_step.detector, micro_batches[0])
    norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt().item()
    train_step, (micro_batches, *_) = make(*PLAIN_SGD, f"optimizer.clip_norm={share * norm}")
    before = weights(train_step)
    lr, _ = train_step(micro_batches, 1.0)
    after = {name: before[name] - lr * min(share, 1.0) * gradient[name] for name in before}
    torch.testing.assert_close(weights(train_step), after, rtol=1e-5, atol=1e-7)


def test_float16_skips_a_step_whose_gradients_overflow_and_lowers_the_loss_scale(make):
    train_step, (first, second, *_) = make(*PLAIN_SGD, "train.precision=float16")
    train_step.scaler.load_state_dict(train_step.scaler.state_dict() | {"scale": 2.0**40})
    before = weights(train_step)
    _, losses = train_step(first, 1.0)
    assert losses.mean.read().isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in weights(train_step).items())
    assert train_step.scaler.get_scale() == 2.0**39
    train_step.scaler.load_state_dict(train_step.scaler.state_dict() | {"scale": 2.0**10})
    train_step(second, 1.0)
    assert not torch.equal(weights(train_step)["head.class_conv.weight"], before["head.class_conv.weight"])
    assert all(value.isfinite().all() for value in weights(train_step).values())


def test_float16_with_clipping_agrees_with_float32(make):
    """The loss scale is divided out before the norm is measured."""
    results = []
    for precision in ("float32", "float16"):
        train_step, (micro_batches, *_) = make(*PLAIN_SGD, f"train.precision={precision}", "optimizer.clip_norm=0.5")
        train_step(micro_batches, 1.0)
        results.append(torch.cat([p.grad.double().flatten() for p in train_step.detector.parameters()]))
    single, half = results
    assert single.norm() == pytest.approx(0.5, rel=1e-5)
    assert half.norm() == pytest.approx(0.5, rel=1e-5)
    assert torch.nn.functional.cosine_similarity(single, half, dim=0) > 0.99


def test_the_ema_follows_its_recurrence_and_is_what_is_evaluated(make):
    train_step, steps = make(*PLAIN_SGD, "train.ema_decay=0.3")
    ema = None
    for count, micro_batches in enumerate(steps[:4]):
        train_step(micro_batches, 1.0)
        decay = min(0.3, (1 + count) / (10 + count))
        ema = {
            name: value if ema is None else ema[name] + (1 - decay) * (value - ema[name])
            for name, value in weights(train_step).items()
        }
    assert train_step.eval_detector is not train_step.detector
    evaluated = {name: p.detach() for name, p in train_step.eval_detector.named_parameters()}
    torch.testing.assert_close(evaluated, ema, rtol=1e-6, atol=1e-8)
    state = train_step.checkpoint_state()
    assert torch.equal(state["ema"]["head.class_conv.weight"], train_step.eval_detector.head.class_conv.weight)
    assert not torch.equal(state["ema"]["head.class_conv.weight"], state["model"]["head.class_conv.weight"])


def test_batch_norm_statistics_are_averaged_and_their_counters_copied(make):
    train_step, steps = make("train.ema_decay=0.5", "backbone.frozen_statistics=false")
    for micro_batches in steps[:3]:
        train_step(micro_batches, 1.0)
    ema, current = train_step.eval_detector.backbone.bn1, train_step.detector.backbone.bn1
    assert ema.num_batches_tracked == current.num_batches_tracked == 3
    assert not torch.equal(ema.running_mean, current.running_mean)


def run(cfg, out, console, stop=None):
    """Train, or resume what `out` holds, to the end or to iteration `stop`; returns the checkpoint and the metrics."""
    trainer = Trainer(cfg, out, console, resume=(out / "last.pt").exists())
    step = trainer.step

    def stopping_step(batches, epoch):
        step(batches, epoch)
        trainer.stop_requested = trainer.iteration == stop

    trainer.step = stopping_step
    if stop is None:
        trainer.fit()
    else:
        with pytest.raises(Interrupted):
            trainer.fit()
    return load_checkpoint(out / "last.pt"), read_metrics(out / "metrics.jsonl")


@pytest.mark.parametrize(
    "settings",
    [["train.accumulate=2", "train.ema_decay=0.8", "optimizer.clip_norm=1.0"], ["train.precision=float16"]],
    ids=["accumulated, EMA, clipped", "float16"],
)
def test_resuming_restores_everything_an_update_depends_on(settings, tiny, tmp_path, console):
    cfg = tiny(*settings)
    whole, rows = run(cfg, tmp_path / "whole", console, stop=4)
    run(cfg, tmp_path / "run", console, stop=2)
    resumed, resumed_rows = run(cfg, tmp_path / "run", console, stop=4)
    assert resumed_rows == rows
    for first, second in ((whole.model, resumed.model), (whole.ema or {}, resumed.ema or {})):
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert resumed.scaler == whole.scaler
    assert (whole.ema is None) == ("train.ema_decay=0.8" not in settings)


def test_activation_checkpointing_changes_no_bit_of_a_run(tiny, tmp_path, console):
    rows = [
        run(tiny(FROZEN, f"train.activation_checkpointing={setting}"), tmp_path / setting, console, stop=3)[1]
        for setting in ("true", "false")
    ]
    assert len(rows[0]) == 3
    assert rows[0] == rows[1]


def test_a_run_starts_from_the_weights_of_a_checkpoint(finished, tiny, tmp_path, console):
    source = finished[0] / "last.pt"
    trainer = Trainer(tiny(f"train.weights={source}"), tmp_path / "run", console)
    given = load_checkpoint(source).model
    assert all(torch.equal(value, given[name]) for name, value in trainer.detector.state_dict().items())
    assert trainer.iteration == 0
    assert f"from {source}\n" in trainer.summary()


def test_for_other_classes_the_class_convolution_alone_starts_afresh(finished, tiny, tmp_path, console):
    checkpoint = load_checkpoint(finished[0] / "last.pt")
    fewer = {name: value for name, value in checkpoint.model.items()}
    for name in ("head.class_conv.weight", "head.class_conv.bias"):
        fewer[name] = fewer[name][:3]
    source = tmp_path / "three.pt"
    save_checkpoint(source, checkpoint._replace(model=fewer, class_names=["a", "b", "c"], category_ids=[1, 2, 3]))
    trainer = Trainer(tiny(f"train.weights={source}"), tmp_path / "run", console)
    torch.manual_seed(trainer.cfg.train.seed)
    fresh = build_detector(trainer.cfg).state_dict()
    for name, value in trainer.detector.state_dict().items():
        expected = fresh if name.startswith("head.class_conv.") else fewer
        assert torch.equal(value, expected[name]), name
    assert "except the class convolution (3 classes there, 8 here)" in trainer.summary()


def test_rows_of_the_class_convolution_are_matched_by_name(finished, tiny, tmp_path, console):
    """Names in another order, one that is new and one that the data lack: never a foreign row in silence."""
    checkpoint = load_checkpoint(finished[0] / "last.pt")
    known = checkpoint.class_names[::-1]
    known[2] = "zeppelin"
    source = tmp_path / "other.pt"
    save_checkpoint(source, checkpoint._replace(class_names=known))
    trainer = Trainer(tiny(f"train.weights={source}"), tmp_path / "run", console)
    torch.manual_seed(trainer.cfg.train.seed)
    fresh = build_detector(trainer.cfg).state_dict()
    for key in ("head.class_conv.weight", "head.class_conv.bias"):
        rows = trainer.detector.state_dict()[key]
        for label, name in enumerate(checkpoint.class_names):
            expected = checkpoint.model[key][known.index(name)] if name in known else fresh[key][label]
            assert torch.equal(rows[label], expected), (key, name)
    lost = checkpoint.class_names[::-1][2]
    assert f"(7 classes matched by name; afresh: {lost}; not used: zeppelin)" in trainer.summary()


def test_a_checkpoint_without_names_says_that_its_order_is_taken(finished, tiny, tmp_path, console):
    source = tmp_path / "nameless.pt"
    save_checkpoint(source, load_checkpoint(finished[0] / "last.pt")._replace(class_names=[]))
    trainer = Trainer(tiny(f"train.weights={source}"), tmp_path / "run", console)
    assert "nameless.pt, which has no class names: its 8 classes are taken in their order" in trainer.summary()


def test_a_run_that_never_leaves_the_warm_up_is_an_error_before_it_starts(tiny, tmp_path, console):
    total = Trainer(tiny(), tmp_path / "long", console).total
    problem = f"warmup_iterations = {total}, and the run has {total} iterations: its learning rate would never leave"
    with pytest.raises(UserError, match=problem):
        Trainer(tiny(f"schedule.warmup_iterations={total}"), tmp_path / "run", console)
    assert not (tmp_path / "run").exists()
    warning = f"schedule.warmup_iterations = {total - 1}, and the run has {total} iterations: a tenth is usual"
    assert warning in Trainer(tiny(f"schedule.warmup_iterations={total - 1}"), tmp_path / "run", console).summary()


def test_checkpoints_that_cannot_be_started_from_or_resumed_say_why(finished, tiny, tmp_path, console):
    checkpoint = load_checkpoint(finished[0] / "last.pt")
    with pytest.raises(UserError, match=r"missing: head\.offset_conv\.weight"):
        Trainer(tiny("head.refine=true", f"train.weights={finished[0] / 'last.pt'}"), tmp_path / "a", console)
    with pytest.raises(UserError, match=r"none\.pt does not exist"):
        Trainer(tiny("train.weights=none.pt"), tmp_path / "b", console)
    assert not list(tmp_path.iterdir())
    (tmp_path / "c").mkdir()
    save_checkpoint(tmp_path / "c" / "last.pt", checkpoint._replace(optimizer=None))
    with pytest.raises(UserError, match="holds weights alone and cannot be resumed"):
        Trainer(override_config(tiny()), tmp_path / "c", console, resume=True)


@pytest.mark.parametrize("deterministic", [True, False])
def test_convolutions_are_deterministic_or_the_fastest_of_a_trial(deterministic, make, monkeypatch):
    for flag in ("deterministic", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, flag, not getattr(torch.backends.cudnn, flag))
    make(f"train.deterministic={str(deterministic).lower()}")
    assert torch.backends.cudnn.deterministic == deterministic
    assert torch.backends.cudnn.benchmark != deterministic
