"""Batches drawn from mixtures of what has broken an implementation of the loss, or might.

An image draws some kinds of boxes, and each of its points a kind of prediction and kinds of logits. float32 holds every
value. Predicted boxes whose areas it does not hold lie at points outside of all boxes only.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from tests import oracle
from tests.support.exactness import Batch
from tests.support.loss_cases import LAYOUTS, Case

CLASSES = (1, 1, 2, 3, 3, 5, 8, 20, 80)
STRIDES = (
    (8, 16, 32, 64, 128, 256, 512),
    (7, 14, 28, 56, 112, 224, 448),
    (4, 8, 20, 24, 100, 101, 300),
    (8, 8, 13, 13, 40, 40, 333),
)
WEIGHTS = np.float32([0, 0, 1e-6, 0.25, 1, 1, 7, 1e4]).astype(np.float64)  # of boxes
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
BEYOND_FLOAT32 = 1e25  # pixels: float32 does not hold such a box's area


@dataclass
class Scene:
    """Where an image's boxes lie."""

    random: np.random.Generator
    points: np.ndarray  # [P, 2]
    strides: np.ndarray  # [P]
    extent: np.ndarray  # [2] width and height in pixels
    small: bool  # few boxes

    def centers(self, count: int) -> np.ndarray:
        """Some of the points, [count, 2]."""
        return self.points[self.random.integers(0, len(self.points), count)]

    def sides(self, count: int) -> np.ndarray:
        """Widths and heights [count, 2] from 3 pixels to one and a half images, uniform in their logarithms."""
        return np.exp(self.random.uniform(np.log(3), np.log(1.5 * self.extent.max()), (count, 2)))


def about(center: np.ndarray, sides: np.ndarray) -> np.ndarray:
    return np.concatenate((center - sides / 2, center + sides / 2), -1)


def anywhere(scene: Scene, count: int) -> np.ndarray:
    return about(scene.random.uniform(-0.1, 1.1, (count, 2)) * scene.extent, scene.sides(count))


def on_points(scene: Scene, count: int) -> np.ndarray:
    """Edges run through points, which are not inside then."""
    ends = np.stack((scene.centers(count), scene.centers(count)))
    return np.concatenate((ends.min(0), ends.max(0)), 1)


def on_cells(scene: Scene, count: int) -> np.ndarray:
    """Edges run between the cells of the finest level."""
    boxes = about(scene.centers(count), scene.sides(count)) / scene.strides[0]
    return np.round(boxes) * scene.strides[0]


def without_area(scene: Scene, count: int) -> np.ndarray:
    """Without width, height or both; on points and between them."""
    flat = np.array([(0, 1), (1, 0), (0, 0)])[scene.random.integers(0, 3, count)]
    return about(scene.centers(count) + scene.random.choice([0, 0.5], (count, 1)), scene.sides(count) * flat)


def below_a_pixel(scene: Scene, count: int) -> np.ndarray:
    sides = 2.0 ** scene.random.uniform(-9, 1, (count, 2))
    return about(scene.centers(count) + 0.4 * sides * scene.random.uniform(-1, 1, (count, 2)), sides)


def off_the_image(scene: Scene, count: int) -> np.ndarray:
    """Far away, and from far away into the image."""
    far = [(-5e5, -5e5, -4e5, -4e5), (1e30, 1e30, 2e30, 2e30), (4, -50, 1e9, 20), (-3e6, -70, 9, 3e6)]
    return np.array(far)[scene.random.integers(0, len(far), count)]


def over_everything(scene: Scene, count: int) -> np.ndarray:
    return about(scene.extent / 2, scene.extent * scene.random.uniform(1.01, 4, (count, 1)))


def at_the_threshold_of_the_prior(scene: Scene, count: int) -> np.ndarray:
    """The hard prior ends at points."""
    chosen, angle = scene.random.integers(0, len(scene.points), count), scene.random.uniform(0, 2 * np.pi, count)
    radius = scene.strides[chosen] * np.sqrt(2 * oracle.SIGMA**2 * np.log(1 / 0.3))
    return about(scene.points[chosen] + (radius * (np.cos(angle), np.sin(angle))).T, scene.sides(count) + 10)


def on_one_point(scene: Scene, count: int) -> np.ndarray:
    count = 3 * count if scene.small else count * scene.random.choice([12, 40], p=[0.8, 0.2])
    return about(scene.centers(1) + scene.random.normal(0, 1, (count, 2)), scene.sides(count))


BOXES = (
    anywhere,
    anywhere,
    on_points,
    on_cells,
    without_area,
    below_a_pixel,
    off_the_image,
    over_everything,
    at_the_threshold_of_the_prior,
    on_one_point,
)
# Distances [P, 4] of a kind, from normal numbers [P, 4] and the sides [P, 4] of a box that holds the point
NEAR_BOXES = (
    lambda normal, sides: sides * np.exp(0.15 * normal),
    lambda normal, sides: sides * np.exp(0.15 * normal),
    lambda normal, sides: sides * (1 + 1e-3 * normal),
    lambda normal, sides: sides * (1 + 1e-7 * normal),
    lambda normal, sides: sides,
    lambda normal, sides: sides * np.where(normal > 0, 1, np.exp(0.2 * normal)),  # ties on some sides
    lambda normal, sides: sides * (0.5, 1, 0.5, 1),  # an IoU of one half
    lambda normal, sides: sides * 1.1,  # all IoUs of a bag alike
    lambda normal, sides: sides * (normal > 0),  # ties and no distance
)
# From normal numbers [P, 4] and the stride [P, 1]
FREE = (
    lambda normal, stride: 2 * stride * np.exp(normal),
    lambda normal, stride: 0 * normal,
    lambda normal, stride: stride * np.exp(normal) * (normal > 0),
    lambda normal, stride: stride * np.exp(normal) * (0, 1, 0, 1),  # no width
    lambda normal, stride: 300 + 60 * normal.clip(-4),
    lambda normal, stride: 10 ** (6 + normal.clip(-3, 3)),
)
LOGITS = (
    lambda normal: normal - 4.6,  # as training begins
    lambda normal: 2 * normal - 1,
    lambda normal: 1.5 * normal - 7,  # of a trained detector
    lambda normal: 9.2 + 0.1 * normal,  # a score of 0.9999
    lambda normal: 0 * normal,
    lambda normal: 30 * normal,
    lambda normal: 100 * np.sign(normal),
    lambda normal: 1e4 * np.sign(normal),
    lambda normal: np.sign(normal) * 10 ** (20 + 9 * normal.clip(-2, 2)),
)


def mixture(random: np.random.Generator, kinds: tuple, most: int, normal: np.ndarray, *others) -> np.ndarray:
    """Rows [P, ...], each of one of at most `most` kinds."""
    drawn = random.integers(0, len(kinds), random.integers(1, most + 1))
    rows = np.stack([kinds[kind](normal, *others) for kind in drawn])
    return rows[random.integers(0, len(drawn), len(normal)), np.arange(len(normal))]


def draw_boxes(scene: Scene, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [G, 4] and labels [G] of an image, in any order, some of them twice."""
    random = scene.random
    kinds = random.integers(0, len(BOXES), random.choice([0, 1, 2, 3], p=[0.15, 0.4, 0.4, 0.05]))
    most = 2 if scene.small else 3
    boxes = np.concatenate([np.zeros((0, 4)), *(BOXES[kind](scene, random.integers(1, most + 1)) for kind in kinds)])
    boxes = boxes.astype(np.float32).astype(np.float64)
    labels = random.integers(0, random.choice([1, min(2, classes), classes]), len(boxes))
    if len(boxes) and random.random() < 0.3:
        copied = random.integers(0, len(boxes), (2, random.integers(1, 4)))
        boxes[copied[0]], labels[copied[0]] = boxes[copied[1]], labels[copied[1]]
    order = random.permutation(len(boxes))
    return boxes[order], labels[order]


def draw_distances(scene: Scene, boxes: np.ndarray) -> np.ndarray:
    """Predicted distances [P, 4]."""
    random, points = scene.random, scene.points
    normal = random.normal(size=(len(points), 4))
    distances = mixture(random, FREE, 2, normal, scene.strides[:, None])
    sides = oracle.box_sides(points, boxes)
    inside = sides.min(-1, initial=np.inf) > 0
    held = inside.any(1)
    if held.any():
        chosen = np.where(inside, random.random(inside.shape), -1).argmax(1)
        sides = sides[np.arange(len(points)), chosen].astype(np.float32).astype(np.float64)
        close = held & (random.random(len(points)) < random.choice([0.5, 1]))
        distances = np.where(close[:, None], mixture(random, NEAR_BOXES, 3, normal, sides), distances)
    if random.random() < 0.2:
        distances[~held & (random.random(len(points)) < 0.5)] = BEYOND_FLOAT32
    return distances


def draw_logits(scene: Scene, classes: int, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class logits [P, C] and objectness [P]; in some images as of a detector that is sure of its boxes."""
    random, count = scene.random, len(scene.points)
    z = mixture(random, LOGITS, 3, random.normal(size=(count, classes)))
    u = mixture(random, LOGITS, 2, random.normal(size=count))
    if random.random() < 0.25:
        for box, point in np.argwhere(oracle.is_inside(scene.points, boxes).T):
            z[point, labels[box]], u[point] = random.normal(9.2, 0.3, 2)
    return z, u


def held_by(dtype: torch.dtype, values: np.ndarray) -> np.ndarray:
    """The nearest finite values that `dtype` holds."""
    most = torch.finfo(dtype).max
    return torch.tensor(values.clip(-most, most)).to(dtype).double().numpy()


def hostile(seed: int, small: bool = False) -> Batch:
    """The batch of that number: of up to 4 images and hundreds of boxes, or up to 2 images with few if `small`."""
    random = np.random.default_rng(seed)
    classes, levels = (
        random.choice(CLASSES),
        random.choice([1, 2, 3, 4, 5, 6, 7] if not small else [1, 2, 2, 3, 3, 4, 7]),
    )
    strides = STRIDES[random.integers(0, len(STRIDES))][:levels]
    height, width = random.integers(1, 9, 2)
    sizes = [(-(-height * strides[0] // stride), -(-width * strides[0] // stride)) for stride in strides]
    if random.random() < 0.2:  # levels that do not fit each other
        sizes = [tuple(random.integers(1, 6, 2).tolist()) for _ in strides]
    case = Case(strides, [tuple(map(int, size)) for size in sizes], None, None, None, [], [], random.random() < 0.7)
    points, point_strides = case.points()
    scene = Scene(random, points, point_strides, np.array([width, height]) * strides[0], small)
    logits, objectness, distances = [], [], []
    for _ in range(random.integers(1, 3 if small else 5)):
        boxes, labels = draw_boxes(scene, classes)
        case.boxes.append(boxes)
        case.labels.append(labels)
        z, u = draw_logits(scene, classes, boxes, labels)
        logits.append(z)
        objectness.append(u)
        distances.append(draw_distances(scene, boxes))
    if random.random() < 0.3:
        case.iscrowd = [random.random(len(labels)) < 0.25 for labels in case.labels]
    if random.random() < 0.4:
        case.box_weights = [random.choice(WEIGHTS, len(labels)) for labels in case.labels]

    dtype = DTYPES[random.integers(0, len(DTYPES))]
    dtypes = dtype, (dtype if random.random() < 0.3 else torch.float32), dtype
    z, d, u = (held_by(dtype, np.array(values)) for dtype, values in zip(dtypes, (logits, distances, objectness)))
    layout, padding = str(random.choice(list(LAYOUTS))), int(random.choice([0, 0, 1, 9]))
    return Batch(replace(case, z=z, d=d, u=u), dtypes, layout, padding)
