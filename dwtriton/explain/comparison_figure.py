"""A figure of the positive points that several assigners give to the objects of one image."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from dwtriton.console.fonts import drawable
from dwtriton.core.errors import UserError
from dwtriton.explain.comparison import Comparison, Positives
from dwtriton.explain.explanation import level_name, window
from dwtriton.explain.figures import FONT_SIZE, IMAGE_WHITENING, check_box

PANEL_INCHES = 1.9  # width of a panel
COLOURS = [colour for number, colour in enumerate(matplotlib.colormaps["tab10"].colors) if number != 7]  # 7 is grey
FAINT = 0.2  # levels where no point is this part of the strongest of its object are left out
DARKER = 0.75  # lines of boxes, in the colour of their points
IGNORED = (0.0, 0.0, 0.0, 0.45)  # colour of ignored points


def draw_comparison(comparison: Comparison, box: int | None = None) -> Figure:
    """Draw the positive points of all objects of an image, or of one: a column for each assigner, a row for each level.

    A point fills its cell in the colour of its object, the more opaque the nearer its strength is to that of the
    object's strongest point on any level; ignored points are dark grey. Levels of faint points alone are left out.
    Raises UserError for a box that is not there, and for an image without boxes.
    """
    count = len(comparison.boxes)
    if not count:
        raise UserError("this image has no objects")
    if box is not None:
        check_box(count, box)
    shown = list(range(count)) if box is None else [box]
    height, width = comparison.image.shape[:2]
    view = (0, 0, width, height)
    if box is not None:
        view = window(comparison.boxes[box].tolist(), (height, width), comparison.strides[0])
    levels = _levels_shown(comparison, shown)
    aspect = (view[3] - view[1]) / (view[2] - view[0])
    with matplotlib.rc_context({"font.size": FONT_SIZE, "axes.linewidth": 0.5}):
        columns = len(comparison.positives)
        size = (0.4 + PANEL_INCHES * columns, 0.6 + (PANEL_INCHES * aspect + 0.2) * len(levels))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(levels), columns, squeeze=False)
        for column, (name, positives) in enumerate(comparison.positives.items()):
            grid[0, column].set_title(name, fontsize=FONT_SIZE + 1, parse_math=False)
            for axes, level in zip(grid[:, column], levels):
                _draw_panel(axes, comparison, positives, shown, level, view)
        for axes, level in zip(grid[:, 0], levels):
            axes.set_ylabel(level_name(comparison.strides[level]))
        of_all = f"{count} objects" if count > 1 else "1 object"
        title, font = drawable(of_all if box is None else f"object {comparison.title(box)}")
        figure.suptitle(title, font=font, fontsize=FONT_SIZE + 1, parse_math=False)
        return figure


def _relative(positives: Positives) -> Tensor:
    """Return the strength of each point for each object, as a part of that of the object's strongest point, [P, G]."""
    return positives.strength / positives.strength.amax(0).clamp(min=1e-30)


def _slices(comparison: Comparison) -> list[slice]:
    """Return which points each level has."""
    ends = accumulate((height * width for height, width in comparison.level_sizes), initial=0)
    return [slice(*span) for span in pairwise(ends)]


def _levels_shown(comparison: Comparison, shown: Sequence[int]) -> list[int]:
    strongest = torch.stack([_relative(positives)[:, shown].amax(1) for positives in comparison.positives.values()])
    levels = [level for level, part in enumerate(_slices(comparison)) if strongest[:, part].amax() > FAINT]
    return levels or [0]


def _draw_panel(
    axes: Axes,
    comparison: Comparison,
    positives: Positives,
    shown: Sequence[int],
    level: int,
    view: tuple[int, int, int, int],
) -> None:
    """Draw one level by one assigner: the image in light grey, cells of points, boxes."""
    height, width = comparison.image.shape[:2]
    part, stride = _slices(comparison)[level], comparison.strides[level]
    value, owner = _relative(positives)[part][:, shown].max(1)
    colours = torch.tensor(COLOURS, dtype=torch.float64)  # of the objects, in turn
    of_object = torch.tensor(shown)[owner] % len(colours)
    cells = torch.cat((colours[of_object], value.sqrt()[:, None].double()), 1)
    cells[positives.ignored[part] & (value <= 0)] = torch.tensor(IGNORED, dtype=cells.dtype)
    cells = cells.unflatten(0, comparison.level_sizes[level]).numpy()
    pixels = cells.repeat(stride, 0).repeat(stride, 1)[:height, :width]

    grey = comparison.image.mean(2, keepdims=True).repeat(3, 2) / 255
    extent = (0, width, height, 0)
    axes.imshow(IMAGE_WHITENING + (1 - IMAGE_WHITENING) * grey, extent=extent, interpolation="hanning")
    axes.imshow(pixels, extent=extent, interpolation="nearest")
    for x1, y1, x2, y2 in comparison.crowds.tolist():
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="black", linestyle=":"))
    for number in shown:
        x1, y1, x2, y2 = comparison.boxes[number].tolist()
        colour = (DARKER * colours[number % len(colours)]).tolist()
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=0.9))
        axes.text(x1, y1, f"{number}", color=colour, va="bottom", clip_on=True)
    left, top, right, bottom = view
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    points = int((positives.strength[part][:, shown] > 0).any(1).sum())
    axes.set_xlabel(f"{points} positive points" if points != 1 else "1 positive point")
