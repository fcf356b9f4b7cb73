"""One image of the `shapes` data set: objects placed on a background, and the annotations of what can be seen."""

from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from dwtriton.data.shapes.drawing import PLAIN_BELOW, Stamp, draw_background, paint

# Neither contiguous nor from 0, as in COCO.
CATEGORY_IDS = dict(oval=3, ring=7, rectangle=8, triangle=12, star=21, cross=34, crescent=35, hourglass=50)
CLASSES = tuple(CATEGORY_IDS)
MIN_DIAMETER = 12  # pixels
MIN_VISIBLE = 0.6  # share of a shape's area that must be inside the image and uncovered, so that its class can be told
MIN_VISIBLE_SMALL = 0.7  # the same for objects under PLAIN_BELOW pixels
MAX_FAINT = 2  # pixels by which parts too thin to be seen, at the border of the image, may stretch a box


def draw_scene(rng: np.random.Generator, crowded: bool = False) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw one image, uint8 [h, w, 3], with its COCO annotations without ids; `crowded` packs it with objects."""
    short = int(rng.integers(120, 201))
    sides = (short, min(320, int(short * rng.uniform(1, 1.6))))
    height, width = sides if rng.random() < 0.5 else sides[::-1]
    scene = Scene(height, width, rng)
    kind = rng.choice(["ordinary", "packed", "crowd", "empty"], p=[0.87, 0.05, 0.04, 0.04])
    if crowded:
        kind = "packed"
    if kind == "crowd":
        scene.add_crowd()
    if kind in ("ordinary", "crowd"):
        scene.add_objects(1 + min(14, int(rng.exponential(4))), largest=0.9)
    elif kind == "packed":
        scene.add_objects(int(rng.integers(16, 31)), largest=0.22)
    return np.clip(scene.image, 0, 255).astype(np.uint8), scene.annotations


class Scene:
    """An image that is drawn object by object.

    Public attributes: `image` float32 [h, w, 3] in 0..255, and for each object its `annotations`, `visible` (its pixels
    that no later object covers, bool [h, w]) and `needed` (how many of them must stay visible).
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.size = np.array([width, height])
        self.image = draw_background(height, width, rng)
        self.annotations: list[dict[str, Any]] = []
        self.visible: list[np.ndarray] = []
        self.needed: list[float] = []

    def add_objects(self, count: int, largest: float) -> None:
        """Place up to `count` objects, with diameters up to `largest` times the short side, mostly large ones first."""
        short = self.size.min()
        smallest = max(MIN_DIAMETER, 0.1 * short)
        diameters = np.exp(self.rng.uniform(np.log(smallest), np.log(largest * short / count**0.15), count))
        for diameter in sorted(diameters, key=lambda d: -d * self.rng.uniform(0.6, 1.6)):
            for _ in range(12):
                if self._try_object(diameter):
                    break

    def add_crowd(self) -> None:
        """Draw a heap of tiny shapes of one class, annotated as one crowd region."""
        name = CLASSES[self.rng.integers(len(CLASSES))]
        spread = self.rng.uniform(0.1, 0.16) * self.size.min()
        middle = self.rng.uniform(0.25, 0.75, 2) * self.size
        heap = np.zeros(self.image.shape[:2], dtype=bool)
        for _ in range(self.rng.integers(14, 26)):
            offset = self.rng.uniform(-1, 1, 2) * spread
            stamp = Stamp(name, middle + offset, self.rng.uniform(7, 10), self.image, self.rng)
            heap |= stamp.mask
            paint(self.image, stamp, True, self.rng)
        self._add(name, heap, _extent(heap), MIN_VISIBLE * heap.sum(), crowd=True)

    def _try_object(self, diameter: float) -> bool:
        """Place one object of a random class at random, unless it would hide another or leave the image too far."""
        name = CLASSES[self.rng.integers(len(CLASSES))]
        centre = self.rng.uniform(0, 1, 2) * self.size
        if self.annotations and self.rng.random() < 0.25:  # beside or upon another one of its class
            neighbour = self.annotations[self.rng.integers(len(self.annotations))]
            name = CLASSES[list(CATEGORY_IDS.values()).index(neighbour["category_id"])]
            x, y, w, h = neighbour["bbox"]
            centre = np.clip((x, y) + self.rng.uniform(-0.2, 1.2, 2) * (w, h), 0, self.size)
        stamp = Stamp(name, centre, diameter, self.image, self.rng)
        small = diameter < PLAIN_BELOW
        needed = stamp.area * (MIN_VISIBLE_SMALL if small else MIN_VISIBLE)
        still_visible = [seen & ~stamp.mask for seen in self.visible]
        if stamp.mask.sum() < needed or any(seen.sum() < least for seen, least in zip(still_visible, self.needed)):
            return False
        if np.abs(stamp.box() - _extent(stamp.mask)).max() > MAX_FAINT:
            return False
        paint(self.image, stamp, small, self.rng)
        self.visible = still_visible
        self._add(name, stamp.mask, stamp.box(), needed, crowd=False)
        return True

    def _add(self, name: str, mask: np.ndarray, box: np.ndarray, needed: float, crowd: bool) -> None:
        self.visible.append(mask)
        self.needed.append(needed)
        x1, y1, x2, y2 = box.tolist()
        counts = rle.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode("ascii")
        self.annotations.append(
            {
                "category_id": CATEGORY_IDS[name],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(mask.sum()),
                "iscrowd": int(crowd),
                "segmentation": {"size": list(mask.shape), "counts": counts},
            }
        )


def _extent(mask: np.ndarray) -> np.ndarray:
    """Box xyxy around the true pixels, float64 [4]."""
    return np.array(Image.fromarray(mask).getbbox(), dtype=float)
