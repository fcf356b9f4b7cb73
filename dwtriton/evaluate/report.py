"""The report of an evaluation: one HTML file that needs nothing else. docs/evaluation.md explains what it shows.

Names of classes are only ever HTML text, and so they may hold any script and any sign.
"""

import html
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from pycocotools.coco import COCO
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.v2 import functional as tv
from torchvision.utils import draw_bounding_boxes

from dwtriton.console.drawing import COLOURS
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.evaluate import report_parts as parts
from dwtriton.evaluate.coco_metrics import AREAS, CLASS_METRICS, Evaluation
from dwtriton.evaluate.tide import (
    ERROR_TYPES as ERRORS,
    RECALLS,
    SPECIAL_ERRORS as TOTALS,
    Analysis,
    Detection,
    Truth,
    analyse,
    confusion_matrix,
    precision_curves,
    worst_false_positives,
    worst_misses,
)

GALLERY = 18  # mistakes of a kind that are shown
TILE = 220, 400  # pixels: height and largest width of a picture of a mistake
OBJECT, DETECTION = "#29b6f6", "#ff8f00"  # colours: blue, orange
AROUND = 0.8  # of a box's longer side, shown around it
SURE = 0.3  # least score of a detection in the confusion matrix
TOGETHER = 8  # classes that have their curves in one picture
APART = 80  # classes that have a small picture each
LARGEST_MATRIX = 25  # classes
CONFUSIONS = 20  # pairs of classes that are listed where the matrix would be too large
FIGURES = {
    "AP": "mean over IoUs from 0.50 to 0.95",
    "AP50": "at an IoU of 0.50",
    "AP75": "at an IoU of 0.75",
    "AR1": "recall with the surest detection of each class in an image",
    "AR10": "recall with ten of them",
    "AR100": "recall with a hundred",
}

ImageFile = tuple[Path, tuple[int, int]]  # and the (h, w) that its annotations are for


def report_html(
    evaluation: Evaluation,
    coco: COCO,
    results: list[dict],
    paths: dict[int, str],
    title: str,
    notes: Sequence[str] = (),
) -> str:
    """The HTML of a report.

    `paths` are the image files by id, as far as there are any; `title` says what was evaluated, `notes` what else to
    know, such as files that could not be read.
    """
    analysis = analyse(coco, results)
    names = {id_: str(category["name"]) for id_, category in coco.cats.items()}
    sizes = {id_: (image["height"], image["width"]) for id_, image in coco.imgs.items()}
    files = {id_: (Path(path), sizes[id_]) for id_, path in paths.items()}
    sections = [
        ("Figures", _figures(evaluation)),
        ("Objects by size", _sizes(evaluation, analysis)),
        ("Classes", _classes(evaluation, analysis, names)),
        ("What AP50 loses to each kind of mistake", _errors(analysis)),
        ("Precision and recall at an IoU of 0.5", _curves(analysis, names)),
        ("Confusions", _confusions(analysis, names)),
        ("The largest objects that were not found", _misses(analysis, names, files)),
        ("The surest wrong detections", _mistakes(analysis, names, files)),
    ]
    summary = f"{len(coco.imgs)} images, {len(analysis.truths)} objects, {len(results)} detections"
    body = [f"<h1>{html.escape(title)}</h1>", parts.note(f"{summary}; {date.today().isoformat()}")]
    body += [parts.note(html.escape(line)) for line in notes]
    body += [f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{parts.STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _figures(evaluation: Evaluation) -> str:
    values = ((name, evaluation.metrics[name], what) for name, what in FIGURES.items())
    rows = [(name, parts.number(value), parts.bar(value), parts.explanation(what)) for name, value, what in values]
    return parts.table((), rows)


def _sizes(evaluation: Evaluation, analysis: Analysis) -> str:
    rows = []
    for letter, (name, (least, most)) in AREAS.items():
        count = sum(least <= truth.area <= most for truth in analysis.truths)
        ap, ar = evaluation.metrics[f"AP{letter}"], evaluation.metrics[f"AR{letter}"]
        rows.append((name, str(count), parts.number(ap), parts.bar(ap), parts.number(ar), parts.bar(ar)))
    return parts.table(("size", "objects", "AP", "", "AR", ""), rows) + parts.note(
        "Small: an area up to 32&sup2; pixels; medium: up to 96&sup2;; large: from there on."
    )


def _classes(evaluation: Evaluation, analysis: Analysis, names: dict[int, str]) -> str:
    objects = dict.fromkeys(names.values(), 0)
    for truth in analysis.truths:
        objects[names[truth.category_id]] += 1
    rows = []
    for name, figures in sorted(evaluation.classes.items(), key=lambda item: -item[1]["AP"]):
        numbers = [parts.number(figures[metric]) for metric in CLASS_METRICS]
        rows.append((html.escape(name), str(objects[name]), *numbers, parts.bar(figures["AP"])))
    return parts.table(("class", "objects", *CLASS_METRICS, ""), rows)


def _errors(analysis: Analysis) -> str:
    most = max(*(analysis.costs[error] for error in ERRORS), 1e-9)
    rows = []
    for kind, what in {**ERRORS, **TOTALS}.items():
        cost = analysis.costs[kind]
        length = parts.bar(cost / most) if kind in ERRORS else ""
        rows.append((kind, str(analysis.counts[kind]), f"{100 * cost:.1f}", length, parts.explanation(what)))
    return parts.table(("kind", "count", "points of AP50", "", ""), rows) + parts.note(
        "The points of AP50 that an oracle would gain by mending one kind of mistake and nothing else (TIDE, arXiv "
        "2008.08115). They do not add up. Counts include detections of the lowest scores, which cost next to nothing."
    )


def _curves(analysis: Analysis, names: dict[int, str]) -> str:
    objects = {truth.category_id for truth in analysis.truths}
    curves = precision_curves(analysis.truths, analysis.detections)
    curves = {id_: curve for id_, curve in curves.items() if id_ in objects}
    if not curves:
        return parts.note("There are no objects.")
    mean = np.mean(list(curves.values()), 0)
    if len(curves) <= TOGETHER:
        lines = [("mean of all classes", "black", mean)]
        lines += [(names[id_], COLOURS[number], curve) for number, (id_, curve) in enumerate(curves.items())]
        keys = "<br>".join(
            f'<span class=key style="background:{colour}"></span>{html.escape(name)}, AP50 {parts.number(curve.mean())}'
            for name, colour, curve in lines
        )
        return f"<div class=row>{parts.plot(_large_plot([line[1:] for line in lines]))}<div>{keys}</div></div>"
    worst = sorted(curves, key=lambda id_: curves[id_].mean())[:APART]
    pictured = [("mean of all classes", mean), *((names[id_], curves[id_]) for id_ in worst)]
    figures = [
        parts.captioned(parts.plot(_small_plot(curve)), f"{name}, AP50 {curve.mean():.3f}") for name, curve in pictured
    ]
    return parts.gallery(figures) + parts.note(
        f"Recall to the right and precision upwards, both from 0 to 1. {len(worst)} classes, the lowest AP50 first."
    )


def _large_plot(lines: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Curves over RECALLS, each with its colour; the first is the thickest and on top."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for number, (colour, curve) in enumerate(lines):
        axes.plot(RECALLS, curve, color=colour, linewidth=1.3 if number else 2.4, zorder=3 - bool(number))
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    return figure


def _small_plot(curve: np.ndarray) -> Figure:
    figure = Figure(figsize=(1.6, 1.2), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(RECALLS, curve, color=COLOURS[0], alpha=0.3, linewidth=0)
    axes.plot(RECALLS, curve, color=COLOURS[0], linewidth=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[], yticks=[])
    return figure


def _confusions(analysis: Analysis, names: dict[int, str]) -> str:
    categories = sorted(names)
    labels = [html.escape(names[category]) for category in categories]
    matrix = confusion_matrix(analysis, categories, SURE)
    table = _matrix(matrix, labels) if len(labels) <= LARGEST_MATRIX else _frequent_confusions(matrix, labels)
    return table + parts.note(
        f"Detections that score {SURE} or more, at an IoU of 0.5. An object counts once, for the surest detection in "
        "its place; further detections of it, and detections of no object, stand in the row <i>no object</i>."
    )


def _matrix(matrix: np.ndarray, labels: Sequence[str]) -> str:
    """A table of all counts, shaded by their share of the row."""
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    head = "".join(f"<th>{label}</th>" for label in (*labels, "<i>not found</i>"))
    lines = [f"<tr><th></th>{head}</tr>"]
    for label, counts, of_row in zip((*labels, "<i>no object</i>"), matrix, shares):
        cells = (
            f'<td style="background:rgba(76,120,168,{share:.2f});color:{"white" if share > 0.6 else "inherit"}">'
            f"{count or ''}</td>"
            for count, share in zip(counts, of_row)
        )
        lines.append(f"<tr><th>{label}</th>{''.join(cells)}</tr>")
    return "<table class=matrix>" + "\n".join(lines) + "</table>" + parts.note("Rows: objects. Columns: detected as.")


def _frequent_confusions(matrix: np.ndarray, labels: Sequence[str]) -> str:
    """A table of the pairs of classes that are taken for each other most often."""
    between = matrix[:-1, :-1] * (1 - np.eye(len(labels), dtype=int))
    order = np.argsort(-between, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(order, between.shape)) if between[row, column]]
    rows = [(labels[row], labels[column], str(between[row, column])) for row, column in pairs]
    return parts.table(("object", "detected as", "times"), rows)


def _misses(analysis: Analysis, names: dict[int, str], files: dict[int, ImageFile]) -> str:
    figures = []
    for truth, nearest in worst_misses(analysis, GALLERY):
        boxes, why = [(truth, OBJECT)], "no detection comes near"
        if nearest is not None:
            boxes.append((nearest, DETECTION))
            why = f"{nearest.error_type}, {names[nearest.category_id]} {nearest.score:.2f}"
        caption = f"{names[truth.category_id]}, image {truth.image_id}: {why}"
        figures.append(parts.captioned(parts.photograph(_tile(files.get(truth.image_id), boxes)), caption))
    explained = "Blue: the object. Orange: the detection that would be right but for its class or its box, if any."
    return parts.note(explained) + parts.gallery(figures) if figures else parts.note("None.")


def _mistakes(analysis: Analysis, names: dict[int, str], files: dict[int, ImageFile]) -> str:
    figures = []
    for detection in worst_false_positives(analysis, GALLERY):
        boxes, why = [(detection, DETECTION)], str(detection.error_type)
        if detection.truth is not None:
            boxes.append((analysis.truths[detection.truth], OBJECT))
            why += f", {names[detection.truth_category]}"
        caption = f"{names[detection.category_id]} {detection.score:.2f}, image {detection.image_id}: {why}"
        figures.append(parts.captioned(parts.photograph(_tile(files.get(detection.image_id), boxes)), caption))
    explained = "Orange: the detection. Blue: the object that it concerns, if any."
    return parts.note(explained) + parts.gallery(figures) if figures else parts.note("None.")


def _tile(file: ImageFile | None, boxes: Sequence[tuple[Truth | Detection, str]]) -> Tensor | None:
    """What surrounds the first box, with all boxes in their colours, uint8 [3, h, w]; None without a usable file."""
    if file is None:
        return None
    try:
        image = read_image(*file)
    except BrokenImageError:
        return None
    height, width = image.shape[1:]
    xywh = torch.tensor([box.bbox for box, _ in boxes], dtype=torch.float32)
    xywh[:, 2:].clamp_(min=0)  # annotations may have any size and place
    corners = clip_boxes_to_image(box_convert(xywh, "xywh", "xyxy"), (height, width))
    x1, y1, x2, y2 = corners[0].tolist()
    margin = AROUND * max(x2 - x1, y2 - y1) + 8
    left, top = max(0, int(x1 - margin)), max(0, int(y1 - margin))
    right, bottom = min(width, int(x2 + margin) + 1), min(height, int(y2 + margin) + 1)
    scale = min(TILE[0] / (bottom - top), TILE[1] / (right - left))
    size = [max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale))]
    crop = tv.resize(image[:, top:bottom, left:right], size, antialias=True)
    moved = (corners - torch.tensor([left, top, left, top])) * scale
    moved = moved.clamp(min=0).minimum(torch.tensor([size[1] - 1, size[0] - 1] * 2))
    colours = [colour for _, colour in boxes]
    return draw_bounding_boxes(crop, moved.flip(0), colors=colours[::-1], width=2)  # the first on top
