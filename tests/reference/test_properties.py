"""Generated batches: losses, every weight and all gradients of the torch backend against the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.generated_cases import (
    LIMITS,
    assert_equals_truth,
    assert_equals_truth_at_used_choices,
    assert_finite_and_exact,
    at_used_weights,
    cases,
    examples,
    extreme_logits,
    nearly_equal_ious,
    no_iou_near_half,
    on_thresholds,
    tied_sides,
)
from tests.support.loss_cases import assert_gradients, random_case, run_loss, truth_gradients


@examples(50)
@given(cases().filter(lambda case: no_iou_near_half(case, 1e-12)))
def test_float64_equals_the_oracle(case):
    assert_equals_truth(case, torch.float64)


@examples(50)
@given(cases().filter(lambda case: no_iou_near_half(case, 1e-5)))
def test_float32_is_within_the_numerics_rules_of_the_oracle(case):
    assert_equals_truth(case, torch.float32)


@pytest.mark.parametrize("dtype", LIMITS)
def test_hundreds_of_boxes_in_many_chunks(dtype, monkeypatch):
    """Chunks that split boxes, and blocks that split levels, change nothing."""
    case = random_case(7, [300, 0, 150], classes=5)
    whole = run_loss(case, case.tensors(dtype))
    monkeypatch.setattr("dwtriton.reference.pairs.PAIRS_ON_CPU", 1009)
    monkeypatch.setattr("dwtriton.reference.dense.ENTRIES_ON_CPU", 200)
    pieces = run_loss(case, case.tensors(dtype))
    limit = LIMITS[dtype][0]
    np.testing.assert_allclose(pieces[0], whole[0], rtol=limit)
    assert_gradients(pieces[1], whole[1], limit)
    assert_equals_truth(case, dtype)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("offset", [0.0, 1e-7, 1e-4])
def test_nearly_equal_ious_amplify_rounding_of_n_only_within_the_bound(dtype, offset):
    case = nearly_equal_ious(offset).rounded(dtype)
    _, spread = at_used_weights(case, dtype)
    assert spread < 1e-2
    assert_equals_truth(case, dtype)


@pytest.mark.parametrize("dtype", LIMITS)
def test_ties_take_the_mean_of_both_slopes(dtype):
    """Half the slope of growing inside and half of growing outside."""
    case = tied_sides()
    _, grads = run_loss(case, case.tensors(dtype))
    expected = truth_gradients(case.truth(at_used_weights(case, dtype)[0]))
    assert np.abs(expected[1]).max() > 0
    assert_gradients(grads, expected, LIMITS[dtype][1])


@examples(50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_float32_where_priors_and_ious_lie_on_their_thresholds_and_sides_on_the_box(seed, count):
    assert_equals_truth_at_used_choices(on_thresholds(seed, count))


@pytest.mark.parametrize("value", [-100.0, -30.0, 30.0, 100.0])
@pytest.mark.parametrize("other", [-100.0, 0.0, 100.0])
def test_extreme_logits_keep_finite_losses_and_exact_gradients(value, other):
    assert_finite_and_exact(extreme_logits(value, other))
