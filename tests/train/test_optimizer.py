"""Parameter groups and learning rates against the released configs (golden/recipe.json)."""

import json
from pathlib import Path

import pytest
import torch

from dwtriton import build_detector, load_config
from dwtriton.config.schema import ScheduleConfig
from dwtriton.model.mmdet_names import mmdet_name
from dwtriton.train.optimizer import build_optimizer, lr_factor, set_learning_rate
from tests.support.golden_cases import RELEASED

RECIPE = json.loads((Path(__file__).parents[1] / "golden" / "recipe.json").read_text())


@pytest.mark.parametrize("name", RELEASED)
def test_every_trainable_parameter_has_its_released_rate_and_decay(name):
    cfg = load_config(name)
    with torch.device("meta"):
        detector = build_detector(cfg)
    optimizer = build_optimizer(detector, cfg.optimizer, cfg.data.batch_size)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    ours = {
        mmdet_name(parameter_name): {key: groups[id(p)][key] for key in ("lr", "weight_decay", "momentum")}
        for parameter_name, p in detector.named_parameters()
        if p.requires_grad
    }
    released = {
        group["name"]: {key: group[key] for key in ("lr", "weight_decay", "momentum")}
        for group in RECIPE[name]["param_groups"]
        if group["requires_grad"]
    }
    assert ours == released
    assert all(group["nesterov"] is False and group["dampening"] == 0 for group in optimizer.param_groups)


@pytest.mark.parametrize("name", RELEASED)
def test_learning_rates_of_the_released_schedule(name):
    schedule, released = load_config(name).schedule, RECIPE[name]
    per_epoch = released["iters_per_epoch"]

    def lr(iteration):
        return 0.01 * lr_factor(iteration, schedule, per_epoch)

    for iteration, expected in released["lr_at_iter"].items():
        assert lr(int(iteration)) == pytest.approx(expected, rel=1e-12)
    for epoch in range(schedule.epochs):
        assert lr(epoch * per_epoch) == pytest.approx(released["lr_at_epoch_first_iter"][epoch], rel=1e-12)
        last = (epoch + 1) * per_epoch - 1
        assert lr(last) == pytest.approx(released["lr_at_epoch_last_iter"][epoch], rel=1e-12)


def test_rate_scales_with_the_batch_and_is_set_in_every_group():
    cfg = load_config("shapes", ["optimizer.kind=sgd"])
    optimizer = build_optimizer(build_detector(cfg), cfg.optimizer, batch_size=4)
    assert {group["lr"] for group in optimizer.param_groups} == {cfg.optimizer.lr / 4}
    assert set_learning_rate(optimizer, 0.5) == cfg.optimizer.lr / 8
    assert {group["lr"] for group in optimizer.param_groups} == {cfg.optimizer.lr / 8}


def test_cosine_falls_from_one_to_nearly_zero_after_warm_up():
    schedule = ScheduleConfig(epochs=10, kind="cosine", warmup_iterations=5, warmup_start=0.1)
    factors = [lr_factor(i, schedule, iterations_per_epoch=20) for i in range(200)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[100] == pytest.approx(0.5)
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert 0 < factors[-1] < 1e-4
