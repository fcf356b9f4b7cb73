"""FCOS, ATSS, SimOTA and TAL against measured data, the NumPy oracle, and examples that can be checked by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from torch import distributed

from dwtriton import pack_targets
from dwtriton.core.boxes import iou
from dwtriton.losses import ATSSLoss, DualWeightAblationLoss, FCOSLoss, SimOTALoss, TaskAlignedLoss
from dwtriton.losses.atss import nearest_cells
from tests import oracle_assigners
from tests.support.generated_cases import PYRAMIDS, cases, examples
from tests.support.loss_cases import Case, join, random_case
from tests.support.peak import peak_bytes

LOSSES = {"fcos": FCOSLoss, "atss": ATSSLoss, "simota": SimOTALoss, "tal": TaskAlignedLoss}
ALL_LOSSES = {**LOSSES, "dual_weight_ablation": DualWeightAblationLoss}
GOLDEN = Path(__file__).parents[1] / "golden" / "assigners"
GRADIENTS = ("grad_cls_logits", "grad_box_dist", "grad_obj_logits")
EPSILON = 3e-7  # MMDetection adds 2^-23 to its divisors, twice at most
METHODS = pytest.mark.parametrize("method", LOSSES)


def run(loss, inputs, targets):
    """Losses as numbers, and the gradients of their sum as [B, P, K] arrays."""
    losses = loss(*inputs, targets)
    flat = [level for kind in inputs for level in kind]
    grads = torch.autograd.grad(sum(losses.values()), flat, allow_unused=True)
    grads = iter(torch.zeros_like(level) if grad is None else grad for grad, level in zip(grads, flat))
    return {name: value.item() for name, value in losses.items()}, [
        join([next(grads) for _ in kind]) for kind in inputs
    ]


def boxes_and_weights(loss, inputs, targets):
    found = loss.assign(*inputs, targets)
    return [image.box.numpy() for image in found], [image.weight.double().numpy() for image in found]


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def test_measured_data(name):
    """Every assignment exactly, and losses and gradients, of the code in MMDetection 3.3.0."""
    truth = dict(np.load(GOLDEN / f"{name}.npz"))
    method, counts = name.split("_")[0], truth["num_gt"]
    case = Case(
        tuple(truth["strides"].tolist()),
        [tuple(size) for size in truth["level_sizes"].tolist()],
        *(truth[key] for key in ("cls_logits", "obj_logits", "box_dist")),
        [boxes[:count] for boxes, count in zip(truth["gt_boxes"], counts)],
        [labels[:count] for labels, count in zip(truth["gt_labels"], counts)],
    )
    loss = LOSSES[method](case.strides)
    for dtype, limit_loss, limit_grad in ((torch.float64, EPSILON, EPSILON), (torch.float32, 1e-5, 1e-4)):
        inputs = case.tensors(dtype)
        box, weight = boxes_and_weights(loss, inputs, case.targets())
        np.testing.assert_array_equal(box, truth["assigned_gt"])
        expected = truth["metric"] if method in ("simota", "tal") else (truth["assigned_gt"] >= 0).astype(float)
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-7)
        losses, grads = run(loss, inputs, case.targets())
        assert losses.keys() == {
            key for key in truth if key in ("loss_cls", "loss_bbox", "loss_centerness", "loss_obj")
        }
        for key, value in losses.items():
            np.testing.assert_allclose(value, truth[key], rtol=limit_loss)
        for key, grad in zip(GRADIENTS, grads):
            expected = truth[key].reshape(grad.shape)
            np.testing.assert_allclose(grad, expected, rtol=0, atol=limit_grad * np.abs(expected).max())


def decided(method, case: Case, box) -> bool:
    """Whether no decision hangs on rounding: predictions moved by a millionth give the same assignment."""
    for factor in (1 - 1e-6, 1 + 1e-6):
        moved = replace(case, d=case.d * factor, z=case.z + 1e-6 * np.sign(factor - 1))
        for image, crowd, same in zip(moved.images(), case.iscrowd or [None] * len(box), box):
            if (oracle_assigners.assign(method, image, crowd)[0] != same).any():
                return False
    return True


def assert_equals_oracle(method, case: Case, dtype, limit_loss, limit_grad):
    """Assignments exactly, qualities, losses, and the slope of their sum in two directions at the fixed assignment."""
    images, crowds = case.images(), case.iscrowd or [None] * len(case.boxes)
    truth = [oracle_assigners.assign(method, image, crowd) for image, crowd in zip(images, crowds)]
    loss, inputs, targets = LOSSES[method](case.strides), case.tensors(dtype), case.targets()
    box, weight = boxes_and_weights(loss, inputs, targets)
    if method in ("simota", "tal") and not decided(method, case, [own for own, _ in truth]):
        return
    for image, crowd, (own, quality), got, got_weight in zip(images, crowds, truth, box, weight):
        ignored = oracle_assigners.is_ignored(image, own, crowd)
        weightless = oracle_assigners.without_weight(image, own)
        np.testing.assert_array_equal(got, np.where((own >= 0) & ~weightless, own, np.where(ignored, -2, -1)))
        np.testing.assert_allclose(got_weight, quality * (got >= 0), rtol=0, atol=limit_loss)
    losses, grads = run(loss, inputs, targets)
    expected = oracle_assigners.losses(method, images, truth, case.iscrowd)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        np.testing.assert_allclose(value, expected[name], rtol=limit_loss, atol=1e-30, err_msg=name)
    random = np.random.default_rng(0)
    for kind, grad in zip(("z", "d", "u"), grads):
        values = getattr(case, kind)
        direction = random.normal(size=values.shape) * (np.maximum(values, 0) if kind == "d" else 1)
        step = 1e-6
        sums = [
            sum(
                oracle_assigners.losses(
                    method, replace(case, **{kind: values + s * direction}).images(), truth, case.iscrowd
                ).values()
            )
            for s in (step, -step)
        ]
        got = (grad.reshape(values.shape) * direction).sum()
        scale = np.abs(grad.reshape(values.shape) * direction).sum()
        assert abs(got - (sums[0] - sums[1]) / (2 * step)) <= limit_grad * scale + 1e-7 * max(1, abs(sums[0])), kind


FIVE_LEVELS = PYRAMIDS[:1]


@METHODS
@examples(12)
@given(case=cases(pyramids=FIVE_LEVELS, counts=(0, 1, 2, 5, 12), max_images=2, classes=(1, 3), soft_prior=(True,)))
def test_generated_cases_in_float64(method, case):
    """No boxes, boxes without a point, copies, crowd regions, weights of boxes, edges on points, logits of 100."""
    assert_equals_oracle(method, case, torch.float64, 1e-9, 1e-4)


@METHODS
@pytest.mark.parametrize("seed", range(2))
def test_generated_cases_in_float32(method, seed):
    case = random_case(seed, [6, 0, 9])
    case.iscrowd = [np.arange(count) % 4 == 3 for count in (6, 0, 9)]
    case.box_weights = [np.array([1.0, 0, 2, 1, 0.5, 3]), np.zeros(0), np.ones(9)]
    assert_equals_oracle(method, case, torch.float32, 1e-5, 1e-4)


# Examples small enough to check by hand: 4 x 4 points of stride 8 at 4, 12, 20, 28; index = 4 * row + column.


def by_hand(boxes, labels=None, distances=4.0, logits=0.0, **target):
    """Inputs and targets of one image; all points predict squares of twice `distances`, and `logits` of two classes."""
    inputs = [[torch.full((1, channels, 4, 4), value)] for channels, value in ((2, logits), (4, distances), (1, 0.0))]
    boxes = torch.tensor(boxes).float().reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return inputs, [{"boxes": boxes, "labels": labels, **target}]


def positives(loss, inputs, targets):
    """{point: box} of one image."""
    (image,) = loss.assign(*inputs, targets)
    return {point: box for point, box in enumerate(image.box.tolist()) if box >= 0}


def test_fcos_takes_the_points_near_the_centre_and_the_smallest_box():
    loss = FCOSLoss((8,), size_ranges=[(0, 100)])
    large = (0, 0, 32, 32)  # centre 16: from 4 to 28, which is not strictly inside
    assert positives(loss, *by_hand([large])) == {5: 0, 6: 0, 9: 0, 10: 0}
    assert positives(loss, *by_hand([large, (8, 8, 16, 16)])) == {5: 1, 6: 0, 9: 0, 10: 0}
    assert positives(loss, *by_hand([large, large])) == {5: 0, 6: 0, 9: 0, 10: 0}
    assert positives(FCOSLoss((8,), size_ranges=[(20, 100)]), *by_hand([large])) == {5: 0, 6: 0, 9: 0, 10: 0}
    assert positives(FCOSLoss((8,), size_ranges=[(20.1, 100)]), *by_hand([large])) == {}


def test_atss_reaches_mean_plus_deviation():
    """Anchors of 8 pixels: the box is exactly that of point 5; of the 4 nearest the others overlap nothing.

    IoUs 1, 0, 0, 0: mean 0.25, deviation 0.5.
    """
    loss = ATSSLoss((8,), topk=4, anchor_scale=1)
    assert positives(loss, *by_hand([(8, 8, 16, 16)])) == {5: 0}
    assert nearest_cells(torch.tensor([[8.0], [8], [16], [16]]), 4, 4, 8, 4).tolist() == [[5, 1, 4, 6]]
    assert positives(loss, *by_hand([(8, 8, 16, 16), (8, 8, 16, 16)])) == {5: 0}


def test_simota_takes_as_many_points_as_predictions_are_good_for():
    """All points predict squares of 8 around them: the box is that of point 5 alone, so k = int(1 + ...) = 1."""
    assert positives(SimOTALoss((8,)), *by_hand([(8, 8, 16, 16)])) == {5: 0}
    inputs, targets = by_hand([(0, 0, 16, 16)])  # four points of IoU 1/4: k = 1, the lowest of equal costs
    assert positives(SimOTALoss((8,)), inputs, targets) == {0: 0}
    two = by_hand([(8, 8, 16, 16), (8, 8, 16, 16)], labels=[1, 0])
    two[0][0][0][0, 0, 1, 1] = 3.0  # class 0 is likelier there: its box costs less
    assert positives(SimOTALoss((8,)), *two) == {5: 1}


def test_tal_takes_the_best_aligned_points_inside():
    inputs, targets = by_hand([(0, 0, 16, 16)])  # points 0, 1, 4, 5 have IoU 1/4, equal alignments
    assert positives(TaskAlignedLoss((8,), topk=2), inputs, targets) == {0: 0, 1: 0}
    inputs[0][0][0, 0, 1, 1] = 2.0  # point 5
    (image,) = TaskAlignedLoss((8,), topk=2).assign(inputs[0], inputs[1], None, targets)
    assert image.box.nonzero()[:, 0].tolist() == [i for i in range(16) if i not in (0, 5)]
    alignment = torch.tensor([0.5, torch.tensor(2.0).sigmoid()], dtype=torch.float64) / 4**6
    expected = alignment / (alignment[1] + 1e-7) / 4
    torch.testing.assert_close(image.weight[[0, 5]].double(), expected, rtol=1e-6, atol=0)


def test_a_point_outside_may_take_a_place_but_is_not_positive():
    """Of three points with the box's own prediction one lies outside: it is among the best two of equal alignments."""
    inputs, targets = by_hand([(8, 0, 24, 8)], distances=0.0)
    box = torch.tensor([8.0, 0, 24, 8])
    for point in (0, 1, 2):
        x, y = 8 * point + 4.0, 4.0
        inputs[1][0][0, :, 0, point] = torch.tensor([x - box[0], y - box[1], box[2] - x, box[3] - y])
    assert positives(TaskAlignedLoss((8,), topk=2), inputs, targets) == {1: 0}


@METHODS
def test_crowd_regions_and_boxes_without_weight_are_ignored(method):
    """Their points have no loss at all; a copy of weight 0 behind a box changes nothing."""
    case = random_case(4, [5])
    case.iscrowd = [np.array([0, 0, 1, 0, 0], bool)]
    case.box_weights = [np.array([1.0, 0, 1, 1, 1])]
    inputs = case.tensors()
    (box,), _ = boxes_and_weights(LOSSES[method](case.strides), inputs, case.targets())
    _, grads = run(LOSSES[method](case.strides), inputs, case.targets())
    assert (box == -2).any()
    assert not any(np.abs(grad[0, box == -2]).any() for grad in grads)


@METHODS
def test_weights_of_one_are_none_and_equal_weights_cancel(method):
    case = random_case(2, [6, 7])
    loss = LOSSES[method](case.strides)
    plain, _ = run(loss, case.tensors(), case.targets())
    for value in (1.0, 4.0):
        weighted = replace(case, box_weights=[np.full(6, value), np.full(7, value)])
        losses, _ = run(loss, weighted.tensors(), weighted.targets())
        np.testing.assert_allclose(losses["loss_bbox"], plain["loss_bbox"], rtol=1e-6)
        assert (losses == plain) == (value == 1.0)


@METHODS
def test_packed_targets_half_precision_and_layouts(method):
    case = random_case(3, [4, 0]).rounded(torch.bfloat16)
    loss = LOSSES[method](case.strides)
    plain, plain_grads = run(loss, case.tensors(), case.targets())
    inputs = case.tensors(torch.bfloat16, torch.channels_last)
    losses, grads = run(loss, inputs, pack_targets(case.targets(), "cpu", capacity=9))
    assert losses == pytest.approx(plain, rel=1e-6)
    for got, expected in zip(grads, plain_grads):
        np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-6 * np.abs(expected).max())


@METHODS
def test_an_invalid_label_on_the_device_makes_all_losses_nan(method, monkeypatch):
    monkeypatch.setattr("dwtriton.losses.inputs.check_values", lambda *_: None)  # as for tensors of a GPU
    case = random_case(1, [3])
    case.labels[0][1] = 99
    losses, _ = run(LOSSES[method](case.strides), case.tensors(), case.targets())
    assert np.isnan(list(losses.values())).all()


def test_heads_without_objectness():
    case = random_case(1, [3])
    z, d, _ = case.tensors()
    assert set(FCOSLoss()(z, d, None, case.targets())) == {"loss_cls", "loss_bbox"}
    assert set(ATSSLoss()(z, d, None, case.targets())) == {"loss_cls", "loss_bbox"}
    with pytest.raises(ValueError, match=r"SimOTALoss needs objectness"):
        SimOTALoss()(z, d, None, case.targets())


def test_settings_are_checked_at_once():
    for loss, settings, message in (
        (FCOSLoss, {"strides": ()}, r"strides must be positive"),
        (FCOSLoss, {"center_radius": 0}, r"center_radius must be positive"),
        (FCOSLoss, {"size_ranges": [(0, 64)]}, r"1 size_ranges for strides"),
        (ATSSLoss, {"topk": 0}, r"topk must be at least 1"),
        (SimOTALoss, {"candidate_topk": 0}, r"candidate_topk at least 1"),
        (TaskAlignedLoss, {"beta": 0}, r"alpha and beta must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(**settings)
    assert repr(TaskAlignedLoss((8,), 0.5, 6, 10)) == (
        "TaskAlignedLoss(strides=(8,), alpha=0.5, beta=6, topk=10, box_weight=2.0)"
    )


def test_iou_of_boxes_apart_is_zero():
    boxes = torch.tensor([[0.0, 0, 4, 4], [6, 6, 8, 8], [2, 0, 6, 4]]).T
    assert iou(boxes[:, :1], boxes).tolist() == [1, 0, pytest.approx(1 / 3)]


@pytest.mark.parametrize("method", ["simota", "tal"])
def test_memory_at_1000_boxes_an_image_stays_below_200_mb(method):
    """Beyond inputs and gradients, one image of 800x1344 and 80 classes; a tensor of all its pairs would be 180 MB."""
    sizes = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
    inputs = [
        [torch.full((1, c, *size), v, requires_grad=True) for size in sizes]
        for c, v in ((80, -4.0), (4, 40.0), (1, 0.0))
    ]
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(1000, 2, generator=generator) * 700
    corners = torch.cat((corner, corner + 10 * 40 ** torch.rand(1000, 2, generator=generator)), 1)
    targets = [{"boxes": corners, "labels": torch.arange(1000) % 80}]
    loss, flat = LOSSES[method](), [level for kind in inputs for level in kind]
    step = lambda: torch.autograd.grad(sum(loss(*inputs, targets).values()), flat, allow_unused=True)  # noqa: E731
    assert 10e6 < peak_bytes(step) - sum(level.nbytes for level in flat) < 200e6


def rank_losses(rank, folder):
    """One of two ranks: its own images, the normalisers of both."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    case = random_case(rank, [[5, 2], [0, 3]][rank])
    torch.save(
        {name: run(loss(case.strides), case.tensors(), case.targets())[0] for name, loss in ALL_LOSSES.items()},
        f"{folder}/{rank}.pt",
    )
    distributed.destroy_process_group()


def test_normalisers_are_means_over_ranks(tmp_path):
    """Half of the sum of both ranks' losses is the loss of one rank with all images."""
    mp.spawn(rank_losses, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    parts = [random_case(0, [5, 2]), random_case(1, [0, 3])]
    both = replace(
        parts[0],
        **{kind: np.concatenate([getattr(part, kind) for part in parts]) for kind in ("z", "u", "d")},
        boxes=parts[0].boxes + parts[1].boxes,
        labels=parts[0].labels + parts[1].labels,
    )
    for method, loss in ALL_LOSSES.items():
        expected, _ = run(loss(both.strides), both.tensors(), both.targets())
        for name, value in expected.items():
            assert (first[method][name] + second[method][name]) / 2 == pytest.approx(value, rel=1e-5), (method, name)


@pytest.mark.slow
@METHODS
def test_one_graph_for_all_numbers_of_boxes(method):
    loss = LOSSES[method]()
    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    torch._dynamo.utils.counters.clear()
    for seed, counts in enumerate(([3, 2], [0, 0], [1, 0], [40, 9])):
        case = random_case(seed, counts)
        losses, grads = run(compiled, case.tensors(), pack_targets(case.targets(), "cpu"))
        expected, expected_grads = run(loss, case.tensors(), case.targets())
        assert losses == pytest.approx(expected, rel=1e-5)
        for got, truth in zip(grads, expected_grads):
            np.testing.assert_allclose(got, truth, rtol=0, atol=1e-5 * np.abs(truth).max(initial=0))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
