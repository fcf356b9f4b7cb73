"""Post-processing against a loop in NumPy, and its edge cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dwtriton import postprocess


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


def naive(levels, size, scale, strides, threshold, count, nms_iou, limit) -> list[tuple[float, int, np.ndarray]]:
    """Detections (score, label, box) of one image; a level is (cls [C, H, W], distances [4, H, W], obj [1, H, W])."""
    candidates = []
    for (cls, distances, obj), stride in zip(levels, strides):
        found = []
        for c, i, j in np.ndindex(cls.shape):
            score = sigmoid(cls[c, i, j]) * sigmoid(obj[0, i, j])
            if score > threshold:
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                left, top, right, bottom = distances[:, i, j]
                box = np.array([x - left, y - top, x + right, y + bottom])
                box = np.clip(box, 0, [size[1], size[0], size[1], size[0]]) / [*scale, *scale]
                found.append((score, c, box))
        candidates += sorted(found, key=lambda item: -item[0])[:count]
    kept = []
    for score, label, box in sorted(candidates, key=lambda item: -item[0]):
        if all(other != label or iou(box, rival) <= nms_iou for _, other, rival in kept):
            kept.append((score, label, box))
    return kept[:limit]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    classes=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.sampled_from([(8,), (8, 16), (4, 10, 100)]),
    spread=st.sampled_from([0.3, 1.0, 4.0]),
    threshold=st.sampled_from([0.0, 0.05, 0.3, 0.9]),
    count=st.integers(1, 40),
    nms_iou=st.sampled_from([0.1, 0.6, 0.95]),
    limit=st.integers(1, 30),
    rescale=st.booleans(),
)
def test_equals_a_loop_over_candidates(
    seed, batch, classes, grid, strides, spread, threshold, count, nms_iou, limit, rescale
):
    random = np.random.default_rng(seed)
    padded = (grid[0] * strides[0], grid[1] * strides[0])
    maps = []
    for stride in strides:
        size = tuple(-(-side // stride) for side in padded)
        maps.append(
            (
                random.normal(0, 2, (batch, classes, *size)),
                random.uniform(0, spread, (batch, 4, *size)) * strides[0],
                random.normal(0, 2, (batch, 1, *size)),
            )
        )
    sizes = [(random.integers(1, padded[0] + 1), random.integers(1, padded[1] + 1)) for _ in range(batch)]
    scales = [tuple(random.uniform(0.3, 3, 2)) if rescale else (1.0, 1.0) for _ in range(batch)]
    results = postprocess(
        *([torch.from_numpy(level[kind]) for level in maps] for kind in range(3)),
        image_sizes=sizes,
        scale_factors=scales if rescale else None,
        strides=strides,
        score_threshold=threshold,
        candidates_per_level=count,
        nms_iou=nms_iou,
        max_detections=limit,
    )
    assert len(results) == batch
    for b, result in enumerate(results):
        levels = [tuple(part[b] for part in level) for level in maps]
        expected = naive(levels, sizes[b], scales[b], strides, threshold, count, nms_iou, limit)
        assert result["labels"].tolist() == [label for _, label, _ in expected]
        np.testing.assert_allclose(result["scores"].numpy(), [score for score, _, _ in expected], rtol=1e-12)
        boxes = np.array([box for _, _, box in expected]).reshape(-1, 4)
        np.testing.assert_allclose(result["boxes"].numpy(), boxes, rtol=1e-12, atol=1e-10)


def one_level(batch: int = 2, classes: int = 3, size: tuple[int, int] = (4, 4), logit: float = 3.0):
    """One level of stride 8 whose boxes are the cells themselves."""
    return (
        [torch.full((batch, classes, *size), logit)],
        [torch.full((batch, 4, *size), 4.0)],
        [torch.full((batch, 1, *size), 3.0)],
    )


def test_no_score_above_the_threshold_gives_empty_results():
    results = postprocess(*one_level(logit=-20.0), image_sizes=[(32, 32), (16, 32)], strides=(8,))
    for result in results:
        assert result["boxes"].shape == (0, 4)
        assert result["scores"].shape == result["labels"].shape == (0,)
        assert result["boxes"].dtype == result["scores"].dtype == torch.float32
        assert result["labels"].dtype == torch.int64


def test_images_of_a_batch_have_their_own_sizes_scales_and_counts():
    cls_logits, distances, objectness = one_level()
    cls_logits[0][1, :, 1:] = -20.0
    sizes, scales = torch.tensor([[32, 32], [7, 12]]), torch.tensor([[1.0, 1.0], [2.0, 0.5]])
    first, second = postprocess(cls_logits, distances, objectness, sizes, scales, strides=(8,))
    assert len(first["boxes"]) == 4 * 4 * 3
    assert second["boxes"][:, 0::2].max() == 6  # 12 wide, half the size
    assert second["boxes"][:, 1::2].max() == 14  # 7 high, twice the size


def test_boxes_of_different_classes_do_not_suppress_each_other():
    outputs = one_level(batch=1, size=(1, 1))
    (result,) = postprocess(*outputs, image_sizes=[(8, 8)], strides=(8,))
    assert sorted(result["labels"].tolist()) == [0, 1, 2]
    assert result["boxes"].tolist() == [[0.0, 0.0, 8.0, 8.0]] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_taken_as_float32(dtype):
    torch.manual_seed(0)
    maps = [[torch.randn(1, c, 4, 4).to(dtype)] for c in (3, 4, 1)]
    maps[1] = [maps[1][0].abs() * 20]
    single = [[level.float() for level in kind] for kind in maps]
    (half,), (full,) = (postprocess(*m, image_sizes=[(32, 32)], strides=(8,)) for m in (maps, single))
    assert half["boxes"].dtype == torch.float32
    for name in half:
        assert torch.equal(half[name], full[name])


def test_without_objectness_the_class_logit_alone_is_the_score():
    torch.manual_seed(0)
    levels = [(torch.randn(2, 3, *size), 20 * torch.rand(2, 4, *size)) for size in ((4, 6), (2, 3))]
    cls_logits, distances = (list(kind) for kind in zip(*levels))
    certain = [torch.full((2, 1, *level.shape[2:]), 1000.0) for level in cls_logits]
    sizes = [(32, 48), (20, 31)]
    without, with_certain = (
        postprocess(cls_logits, distances, objectness, sizes, strides=(8, 16)) for objectness in (None, certain)
    )
    for result, expected in zip(without, with_certain):
        assert result["scores"][0] in torch.cat([level.sigmoid().flatten() for level in cls_logits])
        assert len(result["boxes"]) > 0
        for name in expected:
            assert torch.equal(result[name], expected[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_sizes": [(32, 32)]}, "image_sizes has 1 entries for a batch of 2"),
        ({"image_sizes": [(32, 32), (32, 0)]}, r"image_sizes\[1\]"),
        ({"image_sizes": [(32, 32), (32, 40)]}, r"image_sizes\[1\] = 32 x 40 is larger than the padded batch"),
        ({"image_sizes": [(32, 32), (32, 32, 3)]}, r"image_sizes\[1\]"),
        ({"scale_factors": [(1.0, 1.0)]}, "scale_factors has 1 entries"),
        ({"scale_factors": [(1.0, 1.0), (1.0, float("nan"))]}, r"scale_factors\[1\]"),
        ({"strides": (8, 16)}, r"cls_logits has 1 levels, but the strides are \(8, 16\)"),
        ({"objectness": [torch.zeros(2, 1, 4, 5)]}, r"objectness\[0\] must be \(2, 1, 4, 4\) .*\(2, 1, 4, 5\)"),
        ({"box_distances": [torch.zeros(2, 3, 4, 4)]}, r"box_distances\[0\] must be \(2, 4, 4, 4\) .*\(2, 3, 4, 4\)"),
        ({"objectness": None, "strides": (8, 16)}, r"cls_logits has 1 levels, but the strides are \(8, 16\)"),
        ({"objectness": []}, r"objectness has 0 levels"),
        ({"objectness": None, "box_distances": [torch.zeros(2, 3, 4, 4)]}, r"box_distances\[0\] must be .*3, 4, 4\)"),
    ],
)
def test_inputs_that_do_not_fit_together_are_named(change, message):
    names = ("cls_logits", "box_distances", "objectness")
    arguments = dict(zip(names, one_level())) | {"image_sizes": [(32, 32)] * 2, "strides": (8,)}
    with pytest.raises(ValueError, match=message):
        postprocess(**(arguments | change))
