"""Gradients: finite differences, other incoming gradients than ones, layouts and dtypes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dwtriton.reference import formulas
from tests import oracle
from tests.support.loss_cases import LAYOUTS, LOSSES, assert_gradients, join, random_case, run_loss, truth_gradients


def small_case(**options):
    return random_case(21, [4, 0, 3], classes=3, sizes=((7, 9), (4, 5)), strides=(8, 16), **options)


def test_gradcheck_of_the_logit_losses_with_weights_held_fixed():
    random = torch.Generator().manual_seed(1)
    z = (torch.randn(2, 3, 2, 2, generator=random, dtype=torch.float64) * 4).requires_grad_()
    u = (torch.randn(2, 1, 2, 2, generator=random, dtype=torch.float64) * 4).requires_grad_()
    neg, pos = torch.rand(2, 2, 3, 2, 2, generator=random, dtype=torch.float64)

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, u):
            ctx.save_for_backward(z, u)
            score = z.sigmoid() * u.sigmoid()
            negative = neg * score**2 * formulas.neg_log_complement(score, z, u)
            return (negative + pos * formulas.neg_log_score(z, u)).sum()

        @staticmethod
        def backward(ctx, grad):
            return tuple(grad * part for part in formulas.logit_gradients(*ctx.saved_tensors, neg, pos))

    assert torch.autograd.gradcheck(Held.apply, (z, u))
    low = (0.1 * z.detach() - 1).requires_grad_()  # the cheaper form, where every score is low
    assert torch.autograd.gradcheck(Held.apply, (low, u))


def test_gradcheck_of_giou():
    random = torch.Generator().manual_seed(2)
    distances = (torch.rand(4, 50, generator=random, dtype=torch.float64) * 20 + 0.1).requires_grad_()
    sides = torch.rand(4, 50, generator=random, dtype=torch.float64) * 20 + 0.1

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, distances):
            ctx.save_for_backward(distances)
            return formulas.overlap(distances, sides).reg_loss

        @staticmethod
        def backward(ctx, grad):
            return grad * formulas.reg_loss_gradient(ctx.saved_tensors[0], sides)

    assert torch.autograd.gradcheck(Held.apply, (distances,))


def test_float64_gradients_equal_finite_differences_of_the_oracle_with_weights_held_fixed():
    case = small_case()
    _, grads = run_loss(case, case.tensors(torch.float64))
    held = case.oracle_weights()
    random = np.random.default_rng(0)
    for number, name in enumerate(("z", "d", "u")):
        values = getattr(case, name)
        direction = random.normal(size=values.shape)
        totals = []
        for step in (-1e-6, 1e-6):
            moved = replace(case, **{name: values + step * direction})
            for image, weight in zip(moved.images(), held):
                weight.reg_loss = oracle.iou_and_reg_loss(image.d, oracle.box_sides(image.points, image.boxes))[1]
            totals.append(moved.truth(held).losses.sum())
        slope = (totals[1] - totals[0]) / 2e-6
        assert slope == pytest.approx((grads[number].reshape(values.shape) * direction).sum(), rel=1e-6)


@pytest.mark.parametrize("factors", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2.0, 0.5, 0.1)])
def test_single_and_weighted_losses(factors):
    case = small_case()
    _, grads = run_loss(case, case.tensors(), factors=factors)
    assert_gradients(grads, truth_gradients(case.truth(factors=factors)), 1e-4)


def test_one_loss_alone_gives_every_input_a_gradient():
    case = small_case()
    for name in LOSSES:
        inputs = case.tensors()
        case.loss(inputs)[name].backward()
        assert all(level.grad is not None for kind in inputs for level in kind)


def test_retained_graph_gives_the_same_gradients_again():
    case = small_case()
    inputs = case.tensors()
    flat = [level for kind in inputs for level in kind]
    losses = case.loss(inputs)
    first = torch.autograd.grad(sum(losses.values()), flat, retain_graph=True)
    parts = [torch.autograd.grad(losses[name], flat, retain_graph=name != LOSSES[-1]) for name in LOSSES]
    for whole, *single in zip(first, *parts):
        torch.testing.assert_close(sum(single), whole, rtol=1e-5, atol=1e-7)


def test_second_derivatives_are_refused():
    case = small_case()
    inputs = case.tensors()
    with pytest.raises(RuntimeError, match=r"no second derivative"):
        torch.autograd.grad(sum(case.loss(inputs).values()), inputs[0], create_graph=True)


def test_inputs_changed_in_place_before_backward_are_noticed():
    case = small_case()
    inputs = case.tensors()
    work = [[level * 1 for level in kind] for kind in inputs]
    total = sum(case.loss(work).values())
    work[0][0].add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        total.backward()


def test_loss_without_gradients_is_the_same():
    case = small_case()
    inputs = case.tensors()
    with torch.no_grad():
        quiet = case.loss(inputs)
    losses = case.loss(inputs)
    for name in LOSSES:
        assert not quiet[name].requires_grad
        assert losses[name].requires_grad
        assert torch.equal(quiet[name], losses[name])


def test_same_bits_from_the_same_input():
    case = random_case(4, [60, 60])
    first, second = (run_loss(case, case.tensors()) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert all(np.array_equal(one, other) for one, other in zip(first[1], second[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_half_gradients_are_float32_gradients_rounded_once(dtype, scale):
    """Also behind the factor of a gradient scaler, where half gradients made before it would be mostly zeros."""
    case = small_case().rounded(dtype)
    expected_losses, expected = run_loss(case, case.tensors(torch.float32), factors=(scale,) * 3)
    inputs = case.tensors(dtype)
    losses, grads = run_loss(case, inputs, factors=(scale,) * 3)
    np.testing.assert_array_equal(losses, expected_losses)
    for got, wide in zip(grads, expected):
        rounded = torch.tensor(wide).to(dtype).double().numpy()
        np.testing.assert_array_equal(got, rounded)
    truth = truth_gradients(case.truth(factors=(scale,) * 3))
    denormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert all(np.abs(part).max() < torch.finfo(dtype).max for part in truth)
    limits = tuple(1e-4 + denormal / np.abs(part).max() for part in truth)
    assert_gradients(grads, truth, limits, rounding=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_nothing_and_gradients_keep_them(layout, dtype):
    case = small_case().rounded(dtype)
    expected = run_loss(case, case.tensors(dtype))
    inputs = [[LAYOUTS[layout](level.detach()).requires_grad_() for level in kind] for kind in case.tensors(dtype)]
    losses, grads = run_loss(case, inputs)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    assert_gradients(grads, expected[1], 1e-6, rounding=torch.finfo(dtype).eps)
    flat = [level for kind in inputs for level in kind]
    returned = torch.autograd.grad(sum(case.loss(inputs).values()), flat)
    for level, grad in zip(flat, returned):
        assert grad.dtype == dtype
        assert grad.stride() == torch.empty_like(level).stride()


def test_expanded_inputs():
    """One image shown to the loss three times, without a copy."""
    case = small_case()
    for name in ("z", "d", "u"):
        setattr(case, name, np.repeat(getattr(case, name)[:1], 3, 0))
    inputs = [[level[:1].detach().expand(3, -1, -1, -1).requires_grad_() for level in kind] for kind in case.tensors()]
    losses, grads = run_loss(case, inputs)
    truth = case.truth()
    np.testing.assert_allclose(losses, truth.losses, rtol=1e-5)
    assert_gradients(grads, truth_gradients(truth), 1e-4)


def test_autocast_changes_nothing():
    case = small_case()
    expected = run_loss(case, case.tensors())
    with torch.autocast("cpu", torch.bfloat16):
        got = run_loss(case, case.tensors())
    assert np.array_equal(got[0], expected[0])
    assert all(np.array_equal(one, other) for one, other in zip(got[1], expected[1]))


def test_mixed_dtypes_as_under_autocast():
    """Logits in half, distances in float32: each gradient in its input's dtype."""
    case = small_case()
    z, d, u = case.tensors()
    z = [level.detach().bfloat16().requires_grad_() for level in z]
    losses = case.loss((z, d, u))
    sum(losses.values()).backward()
    assert {level.grad.dtype for level in z} == {torch.bfloat16}
    assert {level.grad.dtype for level in d} == {torch.float32}
    case.z = join(z)
    assert losses["loss_loc"].item() == pytest.approx(case.truth().losses[1], rel=1e-5)
