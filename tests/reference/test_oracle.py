"""The oracle equals the golden files, so that everything else may be compared with the oracle."""

import numpy as np
import pytest
import torch

from tests.support.edge_cases import no_width, no_width_and_height, one_distance_is_zero
from tests.support.golden_cases import GOLDEN_NAMES, golden_case, golden_neg
from tests.support.loss_cases import LOSSES, assert_gradients, join, truth_gradients
from tests.support.released import released_loss

LIMIT = 1e-10


def assert_equal(got, expected, name):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, name
    assert np.abs(got - expected).max(initial=0) <= LIMIT * np.abs(expected).max(initial=0), name


def test_there_are_golden_files():
    assert len(GOLDEN_NAMES) == 12


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_oracle_points_weights_losses_and_gradients_equal_golden(name):
    case, golden = golden_case(name)
    points, strides = case.points()
    assert_equal(points, golden["points"], "points")
    assert_equal(strides, golden["point_strides"], "strides")

    weights = case.oracle_weights()
    arrays = {"inside_mask": "inside", "center_prior": "prior", "ious": "iou", "reg_loss": "reg_loss"}
    for image, weight in enumerate(weights):
        count = len(case.labels[image])
        for key, attribute in (arrays | {"p_pos_weight": "pos"}).items():
            assert_equal(getattr(weight, attribute), golden[key][image][:, :count], key)
    assert_equal([weight.neg for weight in weights], golden_neg(golden), "p_neg_weight")

    result = case.truth(weights)
    for loss, key in zip(result.losses, LOSSES):
        assert_equal(loss, golden[key], key)
    assert_equal(result.pos_norm, golden["pos_avg_factor"], "pos_avg_factor")
    assert_equal(result.neg_norm, golden["neg_avg_factor"], "neg_avg_factor")
    assert_equal(result.image_sums, golden["img_loss_sums"], "img_loss_sums")
    assert_equal(result.image_neg_counts, golden["img_neg_avg"], "img_neg_avg")
    assert_equal(result.grad_z, golden["grad_cls_logits"], "grad_cls_logits")
    assert_equal(result.grad_u, golden["grad_obj_logits"], "grad_obj_logits")
    assert_equal(result.grad_d, golden["grad_box_dist"], "grad_box_dist")


@pytest.mark.parametrize("make", [no_width, no_width_and_height, one_distance_is_zero], ids=lambda make: make.__name__)
def test_oracle_has_the_released_slopes_where_predicted_boxes_have_no_size(make):
    case = make()
    inputs = case.tensors(torch.float64)
    losses = released_loss(*inputs, case.targets(), case.strides)
    grads = iter(torch.autograd.grad(sum(losses.values()), [level for kind in inputs for level in kind]))
    assert_gradients([join([next(grads) for _ in kind]) for kind in inputs], truth_gradients(case.truth()), 1e-9)


def test_the_gradient_widens_predicted_boxes_without_width():
    case = no_width()
    (slopes,) = case.truth().grad_d
    without = case.d[0, :, 0] + case.d[0, :, 2] == 0
    assert (slopes[without][:, [0, 2]] <= 0).all()
    assert slopes[without][:, [0, 2]].min() < -1e-4
