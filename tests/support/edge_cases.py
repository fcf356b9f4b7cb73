"""Single situations in which an implementation of the loss may lose digits or its way."""

from collections.abc import Callable

import numpy as np
import torch

from tests import oracle
from tests.support.exactness import Batch
from tests.support.loss_cases import Case, random_case, weighted

TWO_LEVELS = {"sizes": ((4, 5), (2, 3)), "strides": (8, 16)}


def one_class() -> Case:
    return random_case(1, [3, 0, 1], classes=1, **TWO_LEVELS)


def one_box_over_everything() -> Case:
    case = random_case(2, [1], classes=2, **TWO_LEVELS)
    case.boxes[0][:] = (-100, -90, 300, 200)
    return case


def stack(labels: np.ndarray, **options) -> Case:
    """Boxes of these labels about each other; between them such as hold no point."""
    count = len(labels)
    case = random_case(3, [count], classes=max(labels) + 1, **options)
    random = np.random.default_rng(4)
    center = random.uniform(5, 20, (count, 2))
    half = np.where(random.random((count, 1)) < 0.9, random.uniform(4, 25, (count, 2)), 0.25)
    case.boxes[0] = np.round(np.concatenate((center - half, center + half), 1) * 8) / 8
    case.labels[0][:] = labels
    return case


def stack_of_runs() -> Case:
    """Sorted by class, runs of one box, of some, and of more than 32: they begin and end anywhere in blocks of 32."""
    labels = np.repeat(np.arange(7), (1, 7, 26, 3, 35, 1, 2))
    return stack(np.random.default_rng(5).permutation(labels), sizes=((2, 3), (1, 2)), strides=(8, 16))


def stack_of_many_classes() -> Case:
    return stack(np.random.default_rng(6).integers(0, 80, 50), sizes=((2, 3), (1, 1)), strides=(8, 16))


def near_box(case: Case, image: int, box: int, noise: float, points=slice(None)) -> None:
    """Predict at these points, relative to its sides, nearly the box, where it holds them."""
    sides = oracle.box_sides(case.points()[0], case.boxes[image][box : box + 1])[points, 0]
    near = sides * (1 + noise * np.random.default_rng(7).normal(size=sides.shape))
    case.d[image, points] = np.where(sides.min(1, keepdims=True) > 0, near, case.d[image, points])


def confident(classes: int = 3) -> Case:
    """Scores of 0.9999 at nearly exact boxes and N about 0.001: little is left of the negative loss with N = 1."""
    case = random_case(8, [1, 0], classes, sizes=((7, 7),), strides=(8,))
    case.boxes[0][:], case.labels[0][:] = (3, 2, 53, 55), 0
    case.z[:], case.u[:] = -5, 0
    near_box(case, 0, 0, 1e-4)
    inside = oracle.is_inside(case.points()[0], case.boxes[0]).nonzero()[0]
    case.z[0, inside, 0] = case.u[0, inside] = 9.9
    worst = inside[-1]
    case.d[0, worst, 2:] *= 0.8  # an IoU that stretches those of the bag; nothing is sure of it
    case.z[0, worst, 0] = -5
    return case.rounded(torch.float32)


def confident_of_one_class() -> Case:
    return confident(1)


def confident_in_a_region_to_ignore() -> Case:
    """The region takes all but the least part of the negative loss away."""
    case = confident()
    case.boxes[0], case.labels[0] = np.array([(0, 0, 60, 60.0), (3, 2, 53, 55)]), np.array([1, 0])
    case.iscrowd = [np.array([True, False]), np.zeros(0, bool)]
    return case


def low_scores_to_ignore(all_points: bool = True) -> Case:
    """A region over all images, or all but a column of points; no score is high: dense passes add them in float32."""
    case = random_case(9, [1, 2], classes=20, sizes=((6, 7), (3, 4)), strides=(8, 16))
    case.z[:] -= 3
    for image in range(2):
        case.boxes[image][-1] = (-100, -100, 500, 500)
    if not all_points:
        case.boxes[1][-1] = (10, -100, 500, 500)
    case.iscrowd = [np.array([True]), np.array([False, True])]
    return case.rounded(torch.float32)


def low_scores_to_ignore_but_some() -> Case:
    return low_scores_to_ignore(all_points=False)


def confident_without_weight() -> Case:
    case = confident()
    case.box_weights = [np.array([0.0]), np.zeros(0)]
    return case


def weights_of_boxes() -> Case:
    """Nothing, tiny, ordinary and large."""
    case = random_case(9, [8, 1], classes=2, **TWO_LEVELS)
    case.box_weights = [np.array([0, 2.0**-20, 1, 1000, 1, 0, 0.5, 3]), np.array([0.0])]
    return case


def weights_and_regions_to_ignore() -> Case:
    return weighted()


def without_size(seed: int, axes: tuple[int, ...]) -> Case:
    """At half of the points predicted boxes have no size along these axes, as ReLU makes them."""
    case = random_case(seed, [2], **TWO_LEVELS)
    case.boxes[0][0] = (-9, -9, 60, 50)
    half = np.random.default_rng(seed).random(case.u.shape) < 0.5
    for axis in axes:
        case.d[half, axis] = case.d[half, axis + 2] = 0
    return case


def no_width() -> Case:
    return without_size(11, (0,))


def no_width_and_height() -> Case:
    return without_size(12, (0, 1))


def one_distance_is_zero() -> Case:
    case = without_size(13, ())
    case.d[np.random.default_rng(14).random(case.d.shape) < 0.3] = 0
    return case


def small_boxes_under_large_predictions(seed: int, least: float, most: float, predicted: float) -> Case:
    """Boxes of `least` to `most` pixels about points, and distances of about `predicted` pixels."""
    random = np.random.default_rng(seed)
    case = random_case(seed, [9], classes=2, **TWO_LEVELS)
    center = case.points()[0][random.choice(26, 9, replace=False)]
    sides = random.uniform(least, most, (9, 2))
    low = center - sides * random.uniform(0.2, 0.8, sides.shape)
    case.boxes[0] = np.concatenate((low, low + sides), 1).astype(np.float32).astype(np.float64)
    case.d[:] = predicted * random.uniform(0.5, 2, case.d.shape)
    return case.rounded(torch.float32)


CASES: dict[str, Callable[[], Case]] = {
    make.__name__.replace("_", " "): make
    for make in (
        one_class,
        one_box_over_everything,
        stack_of_runs,
        stack_of_many_classes,
        confident,
        confident_of_one_class,
        confident_in_a_region_to_ignore,
        low_scores_to_ignore,
        low_scores_to_ignore_but_some,
        confident_without_weight,
        weights_of_boxes,
        weights_and_regions_to_ignore,
        no_width,
        no_width_and_height,
        one_distance_is_zero,
    )
}
SMALL_BOXES = {  # pixels: least and greatest side of the boxes, and the distances to the predicted sides
    "0.02 to 0.1 under 300": (0.02, 0.1, 300),
    "0.1 to 4 under 300": (0.1, 4, 300),
    "2 to 4 under 900": (2, 4, 900),
    "0.02 to 4 under 50": (0.02, 4, 50),
}
SHAPES = {  # classes and levels
    f"{classes} classes, {levels} levels": (classes, levels)
    for levels, classes in enumerate((1203, 365, 80, 60, 20, 3, 1), start=1)
}


def batch_of_shape(classes: int, levels: int, layout: str, dtype: torch.dtype) -> Batch:
    """Levels that halve in size down to a single cell, finest first."""
    sizes = tuple((max(1, 2 >> level), max(1, 5 >> level)) for level in range(levels))
    case = random_case(15, [3], classes, sizes, tuple(8 << level for level in range(levels)))
    return Batch(case.rounded(dtype), (dtype,) * 3, layout)
