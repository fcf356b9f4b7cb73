"""Generated batches through the kernels: everything against the oracle, and what must not change anything."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dwtriton.core.targets import pack_targets
from dwtriton.kernels.configs import DenseConfig, KernelConfigs, Key, search_space
from tests.support.generated_cases import (
    assert_equals_truth,
    assert_equals_truth_at_used_choices,
    examples,
    on_thresholds,
)
from tests.support.kernel_cases import DEVICE, EXAMPLES, PAIRS_OF_RUNS, SMALL_PYRAMIDS, kernel_cases, on_kernels, using
from tests.support.loss_cases import Case, random_case, sums_and_gradients

pytestmark = pytest.mark.usefixtures("device", "poisoned_memory")

FEW_BOXES = {"pyramids": SMALL_PYRAMIDS[:2], "counts": (0, 1, 1, 2)}  # where an example runs the kernels twice


@examples(EXAMPLES)
@given(kernel_cases())
def test_losses_gradients_and_weights_are_within_the_numerics_rules_of_the_oracle(case):
    assert_equals_truth(case, torch.float32)


@examples(EXAMPLES)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.booleans())
def test_where_priors_and_ious_lie_on_their_thresholds_and_sides_on_the_box(seed, count, two_levels):
    sizes, strides = (((4, 6), (2, 3)), (8, 16)) if two_levels else (((6, 8),), (8,))
    assert_equals_truth_at_used_choices(on_kernels(on_thresholds(seed, count, sizes=sizes, strides=strides)))


@st.composite
def configs(draw, num_classes: int) -> KernelConfigs:
    """Any that tuning may come to, and some whose dense passes go through the classes in several steps."""
    space = search_space(Key(torch.float32, "channels_last", num_classes, 1))
    chosen = KernelConfigs(*(draw(st.sampled_from(candidates)) for candidates in space.values()))
    if draw(st.booleans()):
        return chosen
    looped = DenseConfig(points=64, classes=2, warps=1, tiles=draw(st.sampled_from([1, 2])), stages=2)
    assert looped.steps(num_classes) > 1
    return KernelConfigs(looped, chosen.bags, looped)


@examples(EXAMPLES // 2)  # small blocks take longer
@given(
    kernel_cases(
        pyramids=((((9, 11),), (8,)), (((6, 10), (3, 5)), (8, 16))), classes=[20], soft_prior=[True], max_images=1
    ),
    configs(num_classes=20),
)
def test_block_sizes_change_results_by_no_more_than_rounding(case, configs):
    with using(configs):
        assert_equals_truth(case, torch.float32)


def with_images(case: Case, chosen: list[int]) -> Case:
    arrays = {name: getattr(case, name)[chosen] for name in ("z", "u", "d")}
    lists = {name: getattr(case, name) for name in ("boxes", "labels", "iscrowd", "box_weights")}
    return replace(case, **arrays, **{name: parts and [parts[i] for i in chosen] for name, parts in lists.items()})


@examples(PAIRS_OF_RUNS)
@given(st.data(), kernel_cases(**FEW_BOXES), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_an_images_gradients_have_the_same_bits_whatever_else_is_in_the_batch(data, case, seed, padding):
    """Before the normalisers."""
    count = len(case.boxes)
    image = data.draw(st.integers(0, count - 1))
    _, expected = sums_and_gradients(with_images(case, [image]))

    other = random_case(seed, [1], case.z.shape[2], case.sizes, case.strides)
    place = data.draw(st.integers(0, 1))
    order = [image, count] if place == 0 else [count, image]
    both = Case(
        **{name: getattr(case, name) for name in ("strides", "sizes", "soft_prior", "backend", "device")},
        **{name: np.concatenate((getattr(case, name), getattr(other, name))) for name in ("z", "u", "d")},
        **{name: getattr(case, name) + getattr(other, name) for name in ("boxes", "labels")},
        iscrowd=case.iscrowd and [*case.iscrowd, np.zeros(1, bool)],
        box_weights=case.box_weights and [*case.box_weights, np.full(1, 0.25)],
    )
    both = with_images(both, order)
    packed = pack_targets(both.targets(), DEVICE, capacity=sum(map(len, both.boxes)) + padding)
    _, grads = sums_and_gradients(both, packed)
    for one, whole in zip(expected, grads):
        assert np.array_equal(one[0], whole[place])


@examples(PAIRS_OF_RUNS)
@given(st.data(), kernel_cases(**FEW_BOXES))
def test_changing_one_box_changes_only_what_it_may(data, case):
    """Before the normalisers: gradients at points that it never held, of other classes, and of other images stay."""
    filled = [image for image, boxes in enumerate(case.boxes) if len(boxes)]
    assume(filled)
    image = data.draw(st.sampled_from(filled))
    box = data.draw(st.integers(0, len(case.boxes[image]) - 1))
    crowd = case.iscrowd is not None and case.iscrowd[image][box]

    boxes, labels = ([part.copy() for part in parts] for parts in (case.boxes, case.labels))
    changed = replace(case, boxes=boxes, labels=labels)
    boxes[image][box] += data.draw(st.sampled_from([0, 2.5, 20, 500])) * np.array([-1, 1, 1, 1])
    labels[image][box] = data.draw(st.integers(0, case.z.shape[2] - 1))

    def held(case: Case) -> np.ndarray:
        """Whether the box holds each point."""
        places = case.points()[0][:, None] - case.boxes[image][box].reshape(2, 2)
        return (places[:, 0] > 0).all(1) & (places[:, 1] < 0).all(1)

    touched = held(case) | held(changed)
    before, after = (sums_and_gradients(case)[1] for case in (case, changed))
    others = np.arange(len(case.boxes)) != image
    for one, two in zip(before, after):
        assert np.array_equal(one[others], two[others])
        assert np.array_equal(one[image, ~touched], two[image, ~touched])
    if not crowd:
        classes = np.setdiff1d(np.arange(case.z.shape[2]), [case.labels[image][box], labels[image][box]])
        assert np.array_equal(before[0][image][:, classes], after[0][image][:, classes])
