"""The report of an evaluation: one HTML file that needs nothing else."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pycocotools.coco import COCO
from torch import Tensor
from torchvision.io import encode_jpeg
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as tv

from dwtriton.analysis import (
    ERRORS,
    RECALLS,
    Analysis,
    Found,
    Truth,
    analyse,
    confusion_matrix,
    precision_curves,
    worst_false_positives,
    worst_misses,
)
from dwtriton.annotate import COLOURS, draw_boxes
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.train.evaluation import CLASS_METRICS, Evaluation

GALLERY = 18  # mistakes of a kind that are shown
TILE = 220  # pixels of their height
AROUND = 0.8  # of a box's longer side, shown around it
SURE = 0.3  # least score of a detection in the confusion matrix
NAMED_CURVES = 10  # classes that a legend can hold
LARGEST_MATRIX = 25  # classes whose counts can be read

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } td.bar { width: 160px; }
td.bar div { background: #4c78a8; height: .8em; } img { max-width: 100%; } p.note { color: #666; }
.gallery { display: flex; flex-wrap: wrap; gap: 10px; } .gallery figure { margin: 0; }
.gallery figcaption { font-size: 12px; max-width: 220px; }
"""


def report_html(evaluation: Evaluation, coco: COCO, results: list[dict], paths: dict[int, str], title: str) -> str:
    """The HTML of a report. `paths` are the image files by id; `title` says what was evaluated."""
    analysis = analyse(coco, results)
    names = {id_: category["name"] for id_, category in coco.cats.items()}
    sections = [
        ("COCO figures", _metrics_table(evaluation)),
        ("Classes", _class_table(evaluation, analysis, names)),
        ("What AP50 loses to each kind of mistake", _error_section(analysis)),
        ("Precision and recall at an IoU of 0.5", _curves(analysis, names)),
        ("Confusions", _confusions(analysis, names)),
        ("The largest objects that were missed", _gallery(_miss_tiles(analysis, names, paths))),
        ("The surest mistakes", _gallery(_mistake_tiles(analysis, names, paths))),
    ]
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
        f"<p class=note>{len(coco.imgs)} images, {len(analysis.truths)} objects, {len(results)} detections; "
        f"{date.today().isoformat()}</p>\n{body}\n</body></html>\n"
    )


def _metrics_table(evaluation: Evaluation) -> str:
    rows = [(name, _share(value)) for name, value in evaluation.metrics.items()]
    return _table(("figure", "value"), rows) + (
        "<p class=note>AP50 and AP75 at one IoU, AP over IoUs from 0.5 to 0.95; s, m, l: objects up to 32&sup2; "
        "pixels, up to 96&sup2;, and larger; AR: recall with 1, 10, 100 detections an image.</p>"
    )


def _class_table(evaluation: Evaluation, analysis: Analysis, names: dict[int, str]) -> str:
    objects = {names[id_]: sum(truth.category_id == id_ for truth in analysis.truths) for id_ in names}
    rows = []
    for name, figures in sorted(evaluation.classes.items(), key=lambda item: -item[1]["AP"]):
        bar = f"<div style='width:{max(0.0, figures['AP']):.1%}'></div>"
        rows.append((html.escape(name), str(objects[name]), *(_share(figures[m]) for m in CLASS_METRICS), bar))
    return _table(("class", "objects", *CLASS_METRICS, ""), rows, bar_column=True)


def _error_section(analysis: Analysis) -> str:
    rows = [
        (f"{error}: {html.escape(what)}", str(analysis.counts[error]), f"{100 * analysis.costs[error]:.1f}")
        for error, what in ERRORS.items()
    ]
    figure = Figure(figsize=(6, 2.4), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(ERRORS), [100 * analysis.costs[error] for error in ERRORS], color=COLOURS[: len(ERRORS)])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"points of AP50 (now {100 * analysis.ap50:.1f})")
    note = (
        "<p class=note>Points of AP50 that would be gained if an oracle mended one kind of mistake and nothing else "
        "(TIDE, arXiv 2008.08115); they do not add up. Counts include mistakes of low score.</p>"
    )
    return _picture(figure) + _table(("mistake", "count", "points of AP50"), rows) + note


def _curves(analysis: Analysis, names: dict[int, str]) -> str:
    curves = precision_curves(analysis.truths, analysis.found, sorted(names))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    named = len(curves) <= NAMED_CURVES
    for number, (category, curve) in enumerate(curves.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "label": names[category]} if named else {"color": "#4c78a8"}
        axes.plot(RECALLS, curve, linewidth=1, alpha=0.9 if named else 0.3, **style)
    if curves:
        axes.plot(RECALLS, np.mean(list(curves.values()), 0), color="black", linewidth=2, label="mean of all classes")
        axes.legend(fontsize=8)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    return _picture(figure)


def _confusions(analysis: Analysis, names: dict[int, str]) -> str:
    categories = sorted(names)
    matrix = confusion_matrix(analysis, categories, SURE)
    labels = [*(names[category] for category in categories), "nothing"]
    if len(categories) > LARGEST_MATRIX:
        pairs = [
            (matrix[row, column], labels[row], labels[column])
            for row in range(len(categories))
            for column in range(len(categories))
            if row != column
        ]
        rows = [(html.escape(a), html.escape(b), str(count)) for count, a, b in sorted(pairs, reverse=True)[:20]]
        content = _table(("object", "detected as", "times"), rows)
    else:
        side = 2.2 + 0.45 * len(labels)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.subplots()
        shares = matrix / matrix.sum(1, keepdims=True).clip(1)
        axes.imshow(shares, "Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
        axes.set(xticks=range(len(labels)), yticks=range(len(labels)), xlabel="detected", ylabel="object")
        axes.set_xticklabels(labels, rotation=60, ha="right", fontsize=8)
        axes.set_yticklabels(labels, fontsize=8)
        content = _picture(figure)
    return content + (
        f"<p class=note>Detections scoring {SURE} or more at an IoU of 0.5. An object counts once, for the surest of "
        "its detections; others of it, and detections of no object, stand in the row of nothing.</p>"
    )


def _miss_tiles(analysis: Analysis, names: dict[int, str], paths: dict[int, str]) -> Iterable[tuple[str, Tensor]]:
    for truth in worst_misses(analysis, GALLERY):
        tile = _tile(paths.get(truth.image_id), [(truth, names[truth.category_id])])
        if tile is not None:
            yield f"{names[truth.category_id]}, image {truth.image_id}", tile


def _mistake_tiles(analysis: Analysis, names: dict[int, str], paths: dict[int, str]) -> Iterable[tuple[str, Tensor]]:
    for detection in worst_false_positives(analysis, GALLERY):
        name = f"{names[detection.category_id]} {detection.score:.2f}"
        boxes: list[tuple[Found | Truth, str]] = [(detection, name)]
        concerned = ""
        if detection.truth is not None:
            truth = analysis.truths[detection.truth]
            boxes.append((truth, names[truth.category_id]))
            concerned = f" of a {names[truth.category_id]}"
        tile = _tile(paths.get(detection.image_id), boxes)
        if tile is not None:
            yield f"{name}: {detection.error}{concerned}, image {detection.image_id}", tile


def _tile(path: str | None, boxes: Sequence[tuple[Found | Truth, str]]) -> Tensor | None:
    """The surroundings of the first box, with all boxes: blue the first, orange the others; None without a file."""
    try:
        image = read_image(Path(path)) if path else None
    except BrokenImageError:
        return None
    if image is None:
        return None
    corners = box_convert(torch.tensor([box.bbox for box, _ in boxes], dtype=torch.float32), "xywh", "xyxy")
    height, width = image.shape[1:]
    x1, y1, x2, y2 = corners[0].tolist()
    margin = AROUND * max(x2 - x1, y2 - y1) + 8
    left, top = max(0, int(x1 - margin)), max(0, int(y1 - margin))
    right, bottom = min(width, int(x2 + margin) + 1), min(height, int(y2 + margin) + 1)
    scale = TILE / (bottom - top)
    size = [TILE, max(1, round((right - left) * scale))]
    crop = tv.resize(image[:, top:bottom, left:right], size, antialias=True)
    moved = (corners - torch.tensor([left, top, left, top])) * scale
    limits = torch.tensor([size[1], size[0]] * 2)
    return draw_boxes(crop, moved.clamp(min=0).minimum(limits), range(len(boxes)), [text for _, text in boxes], 0)


def _gallery(tiles: Iterable[tuple[str, Tensor]]) -> str:
    figures = [
        f'<figure><img src="{_data_url(encode_jpeg(tile, 85).numpy().tobytes(), "jpeg")}" height="{TILE}" alt="">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, tile in tiles
    ]
    return f"<div class=gallery>{''.join(figures)}</div>" if figures else "<p>none</p>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], bar_column: bool = False) -> str:
    """Cells are HTML; the last column may hold bars."""
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"]
    for row in rows:
        cells = [f"<td>{cell}</td>" for cell in row]
        if bar_column:
            cells[-1] = f"<td class=bar>{row[-1]}</td>"
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _share(value: float) -> str:
    """A dash where there was nothing to measure."""
    return "-" if value < 0 else f"{value:.3f}"


def _picture(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return f'<p><img src="{_data_url(buffer.getvalue(), "png")}" alt=""></p>'


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
