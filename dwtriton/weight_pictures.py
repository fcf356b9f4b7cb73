"""Pictures of a label assignment: where in an image its objects count as positive, and where as negative."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from dwtriton.dense_weights import DualWeights
from dwtriton.errors import UserError
from dwtriton.points import STRIDES

SHOWN = 8  # objects in the picture of all
MARGIN = 0.35  # of the box's longer side, shown around it
POSITIVE, NEGATIVE, OTHER = "inferno", "viridis", "cividis"  # colour maps
QUANTITIES = {  # rows of the picture of one object: name, colour map, whether the scale ends at 1
    "score": ("score of its class", OTHER, True),
    "iou": ("IoU", OTHER, True),
    "prior": ("centre prior", OTHER, True),
    "pos": ("positive weight", POSITIVE, False),
    "neg": ("negative weight", NEGATIVE, False),
}


class Explanation(NamedTuple):
    """The label assignment of one image, all in network pixels."""

    image: np.ndarray  # uint8 [h, w, 3], without padding
    weights: DualWeights  # as DualWeightAssigner gives them
    boxes: Tensor  # (G, 4) xyxy, of the same objects in the same order
    labels: Tensor  # (G,)
    level_sizes: Sequence[tuple[int, int]]  # (h, w) of each level in cells
    names: Sequence[str]  # of label 0, 1, ...
    strides: Sequence[int] = STRIDES

    def title(self, box: int) -> str:
        return f"{box}: {self.names[int(self.labels[box])]}"

    def values(self, quantity: str, box: int) -> np.ndarray:
        """One of QUANTITIES at every point, float [P], 0 where it does not exist.

        The negative weight is the paper's, N s^2, for the class of the box, as the released code computes N.
        """
        weights, label = self.weights, int(self.labels[box])
        values = {
            "score": lambda: weights.score[:, label],
            "iou": lambda: weights.iou[:, box],
            "prior": lambda: weights.prior[:, box],
            "pos": lambda: weights.pos[:, box],
            "neg": lambda: weights.neg[:, label] * weights.score[:, label] ** 2,
        }[quantity]()
        return values.float().numpy()

    def level_map(self, values: np.ndarray, level: int) -> np.ndarray:
        """Values [P] of a level over the pixels of the image, [h, w]: every cell is a square of its stride."""
        first = sum(height * width for height, width in self.level_sizes[:level])
        height, width = self.level_sizes[level]
        cells = values[first : first + height * width].reshape(height, width)
        pixels = cells.repeat(self.strides[level], 0).repeat(self.strides[level], 1)
        return pixels[: self.image.shape[0], : self.image.shape[1]]

    def combined_map(self, values: np.ndarray) -> np.ndarray:
        """The largest value of all levels at every pixel, [h, w]."""
        return np.maximum.reduce([self.level_map(values, level) for level in range(len(self.level_sizes))])

    def surroundings(self, box: int) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of the part of the image around a box."""
        x1, y1, x2, y2 = self.boxes[box].tolist()
        margin = MARGIN * max(x2 - x1, y2 - y1, 2 * self.strides[0])
        height, width = self.image.shape[:2]
        return max(0, x1 - margin), min(width, x2 + margin), min(height, y2 + margin), max(0, y1 - margin)

    def largest_shown(self, pixels: np.ndarray, box: int) -> float:
        """The largest value of a map [h, w] around a box; not quite 0 where all are."""
        left, right, bottom, top = map(int, self.surroundings(box))
        return max(float(pixels[top : bottom + 1, left : right + 1].max()), 1e-12)


def draw_objects(explained: Explanation) -> Figure:
    """All objects side by side, the largest first: the picture, the positive and the negative weights around each."""
    sizes = (explained.boxes[:, 2:] - explained.boxes[:, :2]).prod(1)
    shown = sizes.argsort(descending=True, stable=True).tolist()[:SHOWN]
    if not shown:
        raise UserError("this image has no objects")
    columns = [(explained.title(box), explained, box) for box in shown]
    more = len(explained.boxes) - len(shown)
    title = f"{len(explained.boxes)} objects" + (f", the largest {len(shown)}" if more else "")
    return _draw_columns(columns, ("image", "pos", "neg"), title, shared_scale=False)


def draw_strip(steps: Sequence[tuple[str, Explanation]], box: int) -> Figure:
    """One object at several checkpoints: the scores of its class, its positive and its negative weights.

    `steps` are (title, explanation) of the same image. Each row has one scale, so that heights can be compared.
    """
    _check_box(steps[0][1], box)
    columns = [(title, explained, box) for title, explained in steps]
    return _draw_columns(columns, ("score", "pos", "neg"), steps[0][1].title(box), shared_scale=True)


def draw_object(explained: Explanation, box: int) -> Figure:
    """One object on every level that has points inside, and combined: what its weights are made of, and the weights."""
    _check_box(explained, box)
    inside = explained.weights.inside[:, box].numpy()
    levels = [level for level in range(len(explained.strides)) if explained.level_map(inside, level).any()]
    figure = _figure(len(levels) + 1, len(QUANTITIES))
    grid = figure.subplots(len(QUANTITIES), len(levels) + 1, squeeze=False)
    for row, (quantity, (name, colours, to_one)) in zip(grid, QUANTITIES.items()):
        values = explained.values(quantity, box)
        values = values if quantity in ("score", "neg") else values * inside
        maps = [explained.combined_map(values), *(explained.level_map(values, level) for level in levels)]
        top = 1.0 if to_one else explained.largest_shown(maps[0], box)
        for axes, pixels in zip(row, maps):
            shown = _overlay(axes, explained, box, pixels, colours, top)
        figure.colorbar(shown, ax=row.tolist(), shrink=0.85, pad=0.01)
        row[0].set_ylabel(name, fontsize=9)
    for axes, title in zip(grid[0], ["all levels", *(f"stride {explained.strides[level]}" for level in levels)]):
        axes.set_title(title, fontsize=9)
    figure.suptitle(f"object {explained.title(box)}", fontsize=11)
    return figure


def _draw_columns(
    columns: list[tuple[str, Explanation, int]], quantities: Sequence[str], title: str, shared_scale: bool
) -> Figure:
    """A column for each (title, explanation, box), a row for each quantity of all levels combined."""
    figure = _figure(len(columns), len(quantities))
    grid = figure.subplots(len(quantities), len(columns), squeeze=False)
    for row, quantity in zip(grid, quantities):
        if quantity == "image":
            for axes, (_, explained, box) in zip(row, columns):
                _show(axes, explained, box, explained.image)
            row[0].set_ylabel("image", fontsize=9)
            continue
        name, colours, to_one = QUANTITIES[quantity]
        maps = [explained.combined_map(explained.values(quantity, box)) for _, explained, box in columns]
        tops = [
            1.0 if to_one else explained.largest_shown(pixels, box)
            for pixels, (_, explained, box) in zip(maps, columns)
        ]
        for axes, (_, explained, box), pixels, top in zip(row, columns, maps, tops):
            shown = _overlay(axes, explained, box, pixels, colours, max(tops) if shared_scale else top)
            if not shared_scale:
                axes.set_xlabel(f"up to {top:.2g}", fontsize=7, labelpad=2)
        if shared_scale:
            figure.colorbar(shown, ax=row.tolist(), shrink=0.85, pad=0.01)
        row[0].set_ylabel(name, fontsize=9)
    for axes, (column_title, _, _) in zip(grid[0], columns):
        axes.set_title(column_title, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def _overlay(axes: Axes, explained: Explanation, box: int, pixels: np.ndarray, colours: str, top: float):
    """A map over the grey image: the larger a value, the less is seen of the image. Returns what a colour bar needs."""
    grey = explained.image.mean(2) * 0.5 + 60
    _show(axes, explained, box, grey.clip(0, 255).astype(np.uint8))
    alpha = np.sqrt((pixels / top).clip(0, 1)) * 0.9
    height, width = pixels.shape
    return axes.imshow(pixels, colours, vmin=0, vmax=top, alpha=alpha, extent=(0, width, height, 0), zorder=2)


def _show(axes: Axes, explained: Explanation, box: int, image: np.ndarray) -> None:
    """The surroundings of a box, with the box."""
    height, width = image.shape[:2]
    axes.imshow(image, "gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    x1, y1, x2, y2 = explained.boxes[box].tolist()
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="white", linewidth=1.2, zorder=3))
    left, right, bottom, top = explained.surroundings(box)
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.set_facecolor("black")


def _figure(columns: int, rows: int) -> Figure:
    figure = Figure(figsize=(0.9 + 1.7 * columns, 0.6 + 1.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _check_box(explained: Explanation, box: int) -> None:
    if not 0 <= box < len(explained.boxes):
        raise UserError(f"there is no object {box}: this image has {len(explained.boxes)}, numbered from 0")
