"""Any dtype and layout: the values of float32 and contiguous inputs, gradients rounded once into the input's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.generated_cases import LIMITS, assert_losses, examples, no_iou_near_half
from tests.support.kernel_cases import PAIRS_OF_RUNS, REORDERED, kernel_cases, on_kernels
from tests.support.loss_cases import LAYOUTS, LOSSES, assert_gradients, join, random_case, run_loss, truth_gradients

pytestmark = pytest.mark.usefixtures("device", "poisoned_memory")

WEIGHTS = [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2.0, 0.5, -0.1), (65536,) * 3]  # the last: a gradient scaler's
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def level_gradients(case, inputs, factors):
    losses = case.loss(inputs)
    total = sum(factor * losses[name] for factor, name in zip(factors, LOSSES))
    grads = torch.autograd.grad(total, [level for kind in inputs for level in kind])
    return np.array([losses[name].item() for name in LOSSES]), grads


def assert_rounded_once(grad, wide, level) -> None:
    """`grad` is what `wide`, known to REORDERED of its greatest entry, rounds to in the dtype and layout of `level`."""
    assert grad.dtype == level.dtype
    assert grad.stride() == torch.empty_like(level).stride()
    slack = REORDERED * wide.abs().max()
    assert (grad >= (wide - slack).to(grad.dtype)).all()
    assert (grad <= (wide + slack).to(grad.dtype)).all()


@examples(PAIRS_OF_RUNS)
@given(st.data(), kernel_cases(counts=(0, 1, 1, 2)), st.sampled_from(WEIGHTS))
def test_dtypes_and_layouts_change_nothing_but_the_rounding_of_gradients(data, case, factors):
    """One dtype and layout for each kind of input, or another for each of its levels."""
    inputs = []
    for kind in case.tensors():
        mixed = data.draw(st.booleans())
        drawn = [(data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(sorted(LAYOUTS)))) for _ in kind]
        chosen = drawn if mixed else drawn[:1] * len(kind)
        levels = [LAYOUTS[layout](level.detach().to(dtype)) for level, (dtype, layout) in zip(kind, chosen)]
        inputs.append([level.requires_grad_() for level in levels])
    z, d, u = map(join, inputs)
    case = replace(case, z=z, d=d, u=u[..., 0])
    assume(no_iou_near_half(case, 1e-5))

    plain = case.tensors()
    expected_losses, expected = level_gradients(case, plain, factors)
    losses, grads = level_gradients(case, inputs, factors)
    np.testing.assert_allclose(losses, expected_losses, rtol=REORDERED, atol=0)
    for grad, wide, level in zip(grads, expected, [level for kind in inputs for level in kind]):
        assert_rounded_once(grad, wide, level)

    weights = case.oracle_weights()
    if min(weight.spread.min(initial=np.inf) for weight in weights) >= 1e-2:
        truth = case.truth(weights, factors=factors)
        assert_losses(case, losses, truth.losses, LIMITS[torch.float32][0])
        flat = iter(expected)
        wide = [join([next(flat) for _ in kind]) for kind in plain]
        assert_gradients(wide, truth_gradients(truth), LIMITS[torch.float32][1], underflow=case.weight_underflow)


def small_case():
    return on_kernels(random_case(21, [2, 0], classes=8, sizes=((7, 9), (4, 5)), strides=(8, 16)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_in_each_dtype(layout, dtype):
    case = small_case().rounded(dtype)
    inputs = [[LAYOUTS[layout](level.detach()).requires_grad_() for level in kind] for kind in case.tensors(dtype)]
    expected_losses, expected = level_gradients(case, case.tensors(), (1, 1, 1))
    losses, grads = level_gradients(case, inputs, (1, 1, 1))
    np.testing.assert_allclose(losses, expected_losses, rtol=REORDERED, atol=0)
    for grad, wide, level in zip(grads, expected, [level for kind in inputs for level in kind]):
        assert_rounded_once(grad, wide, level)


def test_expanded_inputs():
    """One image shown to the loss three times, without a copy."""
    case = small_case()
    case = replace(
        case,
        **{name: np.repeat(getattr(case, name)[:1], 3, 0) for name in ("z", "u", "d")},
        boxes=[case.boxes[0], case.boxes[1], case.boxes[0] + 4],
        labels=[case.labels[0], case.labels[1], case.labels[0]],
    )
    inputs = [[level[:1].detach().expand(3, -1, -1, -1).requires_grad_() for level in kind] for kind in case.tensors()]
    losses, grads = run_loss(case, inputs)
    truth = case.truth()
    assert_losses(case, losses, truth.losses, 1e-5)
    assert_gradients(grads, truth_gradients(truth), 1e-4)


def test_autocast_changes_nothing():
    case = small_case()
    expected = run_loss(case, case.tensors())
    with torch.autocast(case.device, torch.bfloat16):
        got = run_loss(case, case.tensors())
    assert np.array_equal(got[0], expected[0])
    assert all(np.array_equal(one, other) for one, other in zip(got[1], expected[1]))
