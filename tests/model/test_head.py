"""The head: initialisation, box refinement, precision, layouts."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dwtriton import build_detector, load_config
from dwtriton.config.schema import HeadConfig
from dwtriton.core.errors import UserError
from dwtriton.model.deformable import DeformableConv2d
from dwtriton.model.head import DenseHead, refine
from dwtriton.model.mmdet_names import mmdet_name
from tests.support.golden_cases import RELEASED

SIZES = [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]


def small_head(**settings) -> DenseHead:
    torch.manual_seed(0)
    return DenseHead(HeadConfig(**({"num_classes": 3, "channels": 16, "convs": 2, "groups": 4} | settings)))


def features(channels: int = 16, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, channels, *size, generator=generator, dtype=dtype) for size in SIZES]


@pytest.mark.parametrize("name", RELEASED)
def test_initial_statistics_are_those_of_the_released_code(released_names, name):
    torch.manual_seed(0)
    detector = build_detector(load_config(name))
    released = released_names[name]["init"]
    ours = {mmdet_name(name): p for name, p in detector.named_parameters() if not name.startswith("backbone")}
    assert ours.keys() == {name for name in released if "center_prior" not in name}
    for name, parameter in ours.items():
        values, count = parameter.detach().double(), parameter.numel()
        mean, std = released[name]["mean"], released[name]["std"]
        if std == 0:
            torch.testing.assert_close(values, torch.full_like(values, mean), rtol=1e-6, atol=0)
        else:
            bound = 4 * std / math.sqrt(count)
            assert abs(values.mean()) < bound, name
            assert values.std() == pytest.approx(std, rel=0.05), name
            assert max(values.max(), -values.min()) < 1.5 * max(released[name]["max"], -released[name]["min"]), name


@pytest.mark.parametrize(("size", "stride"), [((5, 7), 8), ((1, 2), 128), ((4, 1), 10)])
def test_refinement_equals_a_loop_over_points_and_sides(sampled, size, stride):
    random = np.random.default_rng(0)
    height, width = size
    distances = random.uniform(0, 3 * stride, (2, 4, *size))
    offsets = random.normal(0, 1.5, (2, 8, *size))
    expected = np.empty_like(distances)
    for b, i, j in np.ndindex(2, height, width):
        x, y = (np.arange(width) + 0.5) * stride, ((np.arange(height) + 0.5) * stride)[:, None]
        sides = [x - distances[b, 0], y - distances[b, 1], x + distances[b, 2], y + distances[b, 3]]
        l, t, r, d = distances[b, :, i, j] / stride  # noqa: E741 - left, top, right, down
        o = offsets[b, :, i, j]
        steps = [(o[0], o[1] - l), (o[2] - t, o[3]), (o[4], o[5] + r), (o[6] + d, o[7])]
        x1, y1, x2, y2 = (sampled(side, i + row, j + column) for side, (row, column) in zip(sides, steps))
        px, py = (j + 0.5) * stride, (i + 0.5) * stride
        expected[b, :, i, j] = np.maximum([px - x1, py - y1, x2 - px, y2 - py], 0)
    actual = refine(torch.from_numpy(distances), torch.from_numpy(offsets), stride).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-11 * stride)
    assert (expected == 0).any()
    assert (expected > 0).any()


def test_refinement_carries_the_full_gradient():
    generator = torch.Generator().manual_seed(3)
    distances = torch.rand(1, 4, 3, 4, generator=generator, dtype=torch.float64) * 6
    offsets = torch.randn(1, 8, 3, 4, generator=generator, dtype=torch.float64) * 0.3
    assert torch.autograd.gradcheck(
        lambda d, o: refine(d, o, 8), (distances.requires_grad_(), offsets.requires_grad_())
    )


def test_refinement_passes_non_finite_values_on():
    distances, offsets = torch.full((1, 4, 3, 4), 5.0), torch.zeros(1, 8, 3, 4)
    distances[0, 0, 1, 1] = math.nan
    assert refine(distances, offsets, 8).isnan().any()
    refine(torch.full((1, 4, 3, 4), math.inf), offsets, 8)  # far outside: zeros are sampled, no invalid access


@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distances_are_float32_from_the_level_scale_on_under_autocast(refined, dtype):
    head = small_head(refine=refined)
    with torch.no_grad():
        head.scales[4].fill_(700.3 / 4 / 128)
        head.box_conv.weight.zero_()  # distances of exactly scale * 4 * stride
        if refined:
            head.offset_conv.weight.zero_()
        with torch.autocast("cpu", dtype):
            cls_logits, distances, objectness = head(features())
    assert {x.dtype for x in cls_logits + objectness} == {dtype}
    assert {x.dtype for x in distances} == {torch.float32}
    if not refined:
        torch.testing.assert_close(distances[4], torch.full_like(distances[4], 700.3), rtol=1e-6, atol=0)


def test_training_under_autocast_gives_float32_gradients_to_every_parameter():
    head = small_head(refine=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(features())
    sum(x.float().square().mean() for level in outputs for x in level).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


def test_channels_last_gives_the_same_numbers():
    plain = small_head(refine=True).double()
    strided = small_head(refine=True).double().to(memory_format=torch.channels_last)
    inputs = features(dtype=torch.float64)
    for ours, theirs in zip(plain(inputs), strided([x.to(memory_format=torch.channels_last) for x in inputs])):
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_towers_share_nothing_and_follow_the_config():
    head = small_head(convs=3, refine=False)
    assert head.offset_conv is None
    assert len(head.class_tower) == len(head.box_tower) == 3
    parameters = [id(p) for p in head.parameters()]
    assert len(parameters) == len(set(parameters))
    norms = [module for module in head.modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [4] * 6
    cls_logits, distances, objectness = small_head(convs=0)(features())
    assert [x.shape for x in cls_logits] == [(2, 3, *size) for size in SIZES]
    assert [x.shape for x in distances] == [(2, 4, *size) for size in SIZES]
    assert [x.shape for x in objectness] == [(2, 1, *size) for size in SIZES]


def test_the_last_convolution_of_both_towers_is_deformable():
    head = small_head(convs=3, deformable=True)
    deformable = [name for name, module in head.named_modules() if isinstance(module, DeformableConv2d)]
    assert deformable == ["class_tower.2.0", "box_tower.2.0"]
    with pytest.raises(UserError, match=r"head\.deformable = true .* set head\.convs to 1"):
        small_head(convs=0, deformable=True)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(UserError, match=r"head\.groups = 5 .* head\.channels = 16"):
        small_head(groups=5)
