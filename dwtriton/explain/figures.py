"""Figures of a label assignment: where in an image its objects count as positives, and where as negatives."""

from collections.abc import Sequence
from textwrap import fill
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torchvision.ops import box_area

from dwtriton.console.fonts import drawable
from dwtriton.core.errors import UserError
from dwtriton.explain.explanation import Explanation

MAX_OBJECTS = 8  # in the figure of all objects
PANEL_INCHES = 1.15  # six panels fill the width of a page
MAX_PANEL_PIXELS = 480  # of a side; the eye sees no more
FONT_SIZE = 7  # points
LETTERS_PER_INCH = 16
IMAGE_WHITENING = 0.55  # of the image under a map, so that colours stand out
COLOUR_BAR_GREY = 0.8  # under the colours of a bar, like an image of medium brightness


class Quantity(NamedTuple):
    """Name, symbol and colours of a quantity."""

    name: str
    symbol: str  # on the colour bar
    colours: str  # colour map, light to dark
    to_one: bool = True  # the scale ends at 1, otherwise at the largest value shown


QUANTITIES = {
    "score": Quantity("score", "$s$", "Greens"),
    "iou": Quantity("IoU", "IoU", "Greens"),
    "prior": Quantity("centre prior", "prior", "Greens"),
    "pos": Quantity("positive weight", r"$w_\mathrm{pos}$", "Reds", to_one=False),
    "neg": Quantity("negative weight", r"$N\,s^2$", "Blues", to_one=False),
}


class Column(NamedTuple):
    """One object of one explanation, on one level or on all (None)."""

    title: str
    explained: Explanation
    box: int
    level: int | None = None


def draw(explanation: Explanation, box: int | None = None) -> Figure:
    """Draw one box of an image, on all levels combined and on each, or all its boxes, levels combined.

    One box: the image with the points inside, score, IoU, centre prior and weights; a row has one scale. All boxes: the
    image and the weights around each of the MAX_OBJECTS largest, with a scale for every panel.
    Raises UserError for a box that is not there, and for an image without boxes.
    """
    count = len(explanation.boxes)
    if box is not None:
        check_box(count, box)
        columns = [Column("max over levels", explanation, box)]
        levels = range(len(explanation.strides))
        columns += [Column(explanation.level_name(level), explanation, box, level) for level in levels]
        title = f"object {explanation.title(box)}\n{describe_strongest(explanation, box)}"
        return _draw(columns, ("image", *QUANTITIES), title, shared_scale=True)
    if not count:
        raise UserError("this image has no objects")
    shown = box_area(explanation.boxes).argsort(descending=True, stable=True)[:MAX_OBJECTS]
    columns = [Column(explanation.title(box), explanation, box) for box in shown.tolist()]
    title = f"{count} objects" if count > 1 else "1 object"
    title += f", the {MAX_OBJECTS} largest shown" if count > MAX_OBJECTS else ""
    return _draw(columns, ("image", "pos", "neg"), title, shared_scale=False)


def draw_strip(steps: Sequence[tuple[str, Explanation]], box: int) -> Figure:
    """Draw one object at several checkpoints, all levels combined: score, IoU and weights.

    `steps` are one or more (title, explanation) of the same image. Each row has one scale, so that colours can be
    compared. Raises UserError for a box that is not there.
    """
    for _, explained in steps:
        check_box(len(explained.boxes), box)
    columns = [Column(title, explained, box) for title, explained in steps]
    return _draw(columns, ("score", "iou", "pos", "neg"), f"object {steps[0][1].title(box)}", shared_scale=True)


def describe_strongest(explained: Explanation, box: int) -> str:
    """Describe the point with the largest positive weight and the parts of that weight."""
    point = explained.strongest_point(box)
    if point is None:
        return "no point of the pyramid lies inside the box"
    location = f"({point.x:g}, {point.y:g}) of {explained.level_name(point.level)}"
    parts = f"score {point.score:.2f}, IoU {point.iou:.2f}, prior {point.prior:.2f}"
    return f"largest positive weight {_short(point.weight)} at {location}: {parts}"


def check_box(count: int, box: int) -> None:
    """Raise UserError unless `box` numbers one of `count` objects."""
    if not 0 <= box < count:
        raise UserError(f"there is no object {box}: the image has {count}, numbered from 0")


def _draw(columns: Sequence[Column], rows: Sequence[str], title: str, shared_scale: bool) -> Figure:
    """Draw a panel for every row and column; with a shared scale colours mean the same along a row."""
    with matplotlib.rc_context({"font.size": FONT_SIZE, "axes.linewidth": 0.5, "mathtext.fontset": "dejavusans"}):
        width, height = 0.9 + PANEL_INCHES * len(columns), 0.5 + (PANEL_INCHES + 0.2) * len(rows)
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for row, axes_of_row in zip(rows, grid):
            if row == "image":
                _draw_images(axes_of_row, columns)
            else:
                _draw_maps(figure, axes_of_row, columns, row, shared_scale)
        for axes, column in zip(grid[0], columns):
            text, font = drawable(_wrapped(column.title, PANEL_INCHES))
            axes.set_title(text, font=font, fontsize=FONT_SIZE, parse_math=False)
        text, font = drawable(_wrapped(title, width))
        figure.suptitle(text, font=font, fontsize=FONT_SIZE + 1, parse_math=False)
        return figure


def _draw_images(axes_of_row: Sequence[Axes], columns: Sequence[Column]) -> None:
    """Draw the image around each object, in columns of one level with the points inside its box."""
    axes_of_row[0].set_ylabel("image")
    for axes, column in zip(axes_of_row, columns):
        explained, box, level = column.explained, column.box, column.level
        points = explained.points_inside(box, level)
        if level is not None:
            left, _, right, _ = explained.window(box)
            spacing = explained.strides[level] / (right - left) * PANEL_INCHES * 72  # typographic points, like markers
            size = min(2.4, spacing / 2)
            axes.plot(*points.T, "o", color="white", markeredgecolor="black", markersize=size, markeredgewidth=size / 8)
        axes.set_xlabel(f"{len(points)} points inside" if len(points) != 1 else "1 point inside")
        _draw_panel(axes, column)


def _draw_maps(
    figure: Figure, axes_of_row: Sequence[Axes], columns: Sequence[Column], row: str, shared_scale: bool
) -> None:
    """Draw a quantity over the image, and the colour bar of the row."""
    quantity = QUANTITIES[row]
    axes_of_row[0].set_ylabel(quantity.name)
    maps = [column.explained.map(row, column.box, column.level)[_crop(column)] for column in columns]
    largest = [float(pixels.max()) for pixels in maps]
    for axes, column, pixels, value in zip(axes_of_row, columns, maps, largest):
        top = 1.0 if quantity.to_one else max(largest) if shared_scale else value
        total = f", Σ {_short(column.explained.positive_sum(column.box, column.level))}" if row == "pos" else ""
        axes.set_xlabel(f"max {_short(value)}{total}")
        _draw_panel(axes, column, _tint(pixels / max(top, 1e-12), quantity.colours))
    tints = _tint(np.linspace(0, 1, 256), quantity.colours)
    colours = ListedColormap(tints[:, :3] * tints[:, 3:] + COLOUR_BAR_GREY * (1 - tints[:, 3:]))
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=list(axes_of_row), shrink=0.8, pad=0.01, aspect=12)
    bar.set_ticks([0, 1], labels=["0", _short(top) if quantity.to_one or shared_scale else "max"])
    bar.set_label(quantity.symbol, labelpad=0)
    bar.ax.tick_params(length=2, width=0.5)


def _draw_panel(axes: Axes, column: Column, tints: np.ndarray | None = None) -> None:
    """Draw the image around an object, or a map's `tints` over it in light grey; then the box and its strongest point.

    The point appears in the panels of its level.
    """
    explained, (rows, columns) = column.explained, _crop(column)
    part = Image.fromarray(explained.image[rows.start : rows.stop, columns.start : columns.stop])
    pixels = np.asarray(part.reduce(rows.step)) / 255
    height, width = (rows.step * cells for cells in pixels.shape[:2])
    extent = (columns.start, columns.start + width, rows.start + height, rows.start)
    if tints is not None:
        pixels = IMAGE_WHITENING + (1 - IMAGE_WHITENING) * pixels.mean(2, keepdims=True).repeat(3, 2)
    axes.imshow(pixels, extent=extent, interpolation="hanning")
    if tints is not None:
        axes.imshow(tints, extent=extent, interpolation="nearest")
    left, top, right, bottom = explained.window(column.box)
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    x1, y1, x2, y2 = explained.boxes[column.box].tolist()
    point = explained.strongest_point(column.box)
    for colour, width in (("white", 1.8), ("black", 0.8)):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width))
        if point is not None and column.level in (None, point.level):
            axes.plot(point.x, point.y, "+", color=colour, markersize=5 + width, markeredgewidth=width)


def _crop(column: Column) -> tuple[slice, slice]:
    """Return the rows and columns of the image in a panel, every so many pixels."""
    left, top, right, bottom = column.explained.window(column.box)
    step = -(-(right - left) // MAX_PANEL_PIXELS)
    height, width = column.explained.image.shape[:2]
    return slice(max(top, 0), min(bottom, height), step), slice(max(left, 0), min(right, width), step)


def _tint(values: np.ndarray, colours: str) -> np.ndarray:
    """Map values in 0..1, [...], to RGBA, [..., 4]: larger values are darker and less transparent."""
    values = values.clip(0, 1)
    tints = matplotlib.colormaps[colours](0.15 + 0.85 * values)
    tints[..., 3] = np.sqrt(values)
    return tints


def _short(value: float) -> str:
    """Format a value in few letters."""
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:.3f}" if 0 < value < 0.01 else f"{value:.2f}" if value != int(value) else f"{value:.0f}"


def _wrapped(text: str, inches: float) -> str:
    """Break a text into lines of at most so many inches."""
    return "\n".join(fill(line, int(inches * LETTERS_PER_INCH)) for line in text.splitlines())
