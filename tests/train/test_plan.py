"""`--plan`: what it prints is what a run does."""

import re
from collections import Counter

import pytest
import torch

from dwtriton.config.load import dump_config
from dwtriton.data.loaders import OrientedBatchSampler, train_loader
from dwtriton.data.prepare import prepare_data
from dwtriton.train import __main__ as train_command
from dwtriton.train import forecast as forecast_module
from dwtriton.train.estimate import SECONDS_A_GRAPH
from dwtriton.train.plan import make_plan

MANY_SIZES = ["data.short_side=[64, 96]", "data.long_side=160"]


@pytest.fixture
def printed(tiny, tmp_path, call):
    """printed(*overrides): what the command prints for a plan, and the config."""

    def printed(*overrides):
        cfg = tiny(*MANY_SIZES, *overrides)
        (tmp_path / "tiny.toml").write_text(dump_config(cfg))
        code, out, error = call(train_command, "--cfg", tmp_path / "tiny.toml", "--plan")
        assert code == 0, error
        assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]  # nothing is written
        return out, cfg

    return printed


def rows(out, pattern):
    return [match.groups() for match in map(re.compile(pattern).search, out.splitlines()) if match]


def test_sizes_steps_and_padding_are_those_of_the_first_epoch(printed):
    out, cfg = printed("data.buckets=3")
    loader = train_loader(prepare_data(cfg)[0], cfg)
    steps, inside, whole = Counter(), Counter(), Counter()
    for batch in loader:
        size = tuple(batch.images.shape[2:])
        steps[size] += 1
        whole[size] += len(batch) * size[0] * size[1]
        inside[size] += sum(height * width for height, width in batch.image_sizes)
    expected = [(str(h), str(w), str(steps[h, w]), f"{1 - inside[h, w] / whole[h, w]:.1%}") for h, w in sorted(steps)]
    assert rows(out, r"│ (\d+) x (\d+) +│ (\d+) +│ (\S+) ") == expected
    assert rows(out, r"│ all +│ (\d+) +│ (\S+) ") == [(str(steps.total()), f"{1 - inside.total() / whole.total():.1%}")]
    assert f"2 epochs x {steps.total()} steps of 4 images" in out
    assert "3 buckets, each a graph of torch.compile" in out
    (padding,) = [row[1] for row in rows(out, r"│ 3 +│ (\S+) +│ (\S+) ")]
    assert padding == f"{1 - inside.total() / whole.total():.1%}"
    assert re.search(r"a step takes about \S+ s on cpu, \S+ images/s; not compiled", out)
    assert re.search(r"one core loads \S+ images/s, data\.workers = 0", out)
    assert re.search(r"the whole run takes about .+ for 2 evaluations", out)


def test_a_compiled_run_takes_the_time_to_compile_as_well(tiny, monkeypatch, tmp_path):
    """On a CPU steps are as fast as eager ones, and loading adds to them."""
    monkeypatch.setenv("DWTRITON_CACHE", str(tmp_path))
    monkeypatch.setattr(forecast_module, "time_step", lambda *_arguments: 8.0)  # for the four images of a batch
    monkeypatch.setattr(forecast_module, "time_loading", lambda _data: 0.25)
    cfg = tiny(*MANY_SIZES, "data.buckets=3", "train.compile=default", "train.precision=float32")
    train_set, _ = prepare_data(cfg)
    plan = make_plan(cfg, train_set)
    expected = forecast_module.forecast(cfg, train_set, 300, plan, torch.device("cpu"))
    assert expected.compile == 3 * SECONDS_A_GRAPH
    assert expected.step == pytest.approx(4 * 2 * plan.pixels / max(height * width for height, width in plan.buckets))
    evaluations = 2 * 300 * expected.step / 4 / 3
    assert expected.run == pytest.approx(expected.compile + 2 * plan.steps * (expected.step + 4 * 0.25) + evaluations)


def test_more_buckets_cost_less_padding_down_to_none(printed):
    out, _ = printed("data.buckets=0")
    assert "no buckets" in out
    table = rows(out.partition("numbers of buckets")[2], r"│ (\d+) +│ ([\d.]+)% +│")
    assert [count for count, _ in table][:4] == ["1", "2", "3", "4"]
    costs = [float(cost) for _, cost in table]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 20
    assert costs[-1] == 0


@pytest.mark.parametrize("buckets", ["3", "0"])
def test_the_batches_of_the_epoch_are_drawn_once(buckets, printed, monkeypatch):
    drawn = []
    draw = OrientedBatchSampler.global_batches
    monkeypatch.setattr(OrientedBatchSampler, "global_batches", lambda sampler: drawn.append(sampler) or draw(sampler))
    printed(f"data.buckets={buckets}")
    assert len(drawn) == 1


def test_buckets_that_do_not_fit_are_an_error(tiny, tmp_path, call):
    (tmp_path / "tiny.toml").write_text(dump_config(tiny(*MANY_SIZES, "data.buckets=[[64, 64]]")))
    code, _, error = call(train_command, "--cfg", tmp_path / "tiny.toml", "--plan")
    assert (code, "data.buckets: none of [(64, 64)] holds" in error) == (2, True)


def test_a_network_that_no_memory_holds_is_one_error(tiny, tmp_path, call):
    (tmp_path / "tiny.toml").write_text(dump_config(tiny("head.channels=4096", "head.convs=32")))
    code, _, error = call(train_command, "--cfg", tmp_path / "tiny.toml", "--plan")
    assert (code, "of this network take 1" in error) == (2, True), error
    assert "lower head.channels or head.convs" in error


@pytest.mark.parametrize(
    ("size", "timed"),
    [((64, 96), (64, 96)), ((800, 1344), (160, 256)), ((65536, 32), (8576, 32)), ((32, 32), (32, 32))],
)
def test_a_cpu_is_timed_with_an_image_of_like_shape(size, timed):
    assert forecast_module._smaller(size) == timed
