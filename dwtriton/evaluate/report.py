"""The HTML report of an evaluation: a page that loads nothing else, from the template report.html.j2.

docs/evaluation.md explains what it shows.
"""

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.v2.functional import resize

from dwtriton.console.drawing import COLOURS, draw_boxes
from dwtriton.data.images import BrokenImageError, encode_jpeg, read_image
from dwtriton.evaluate import tide
from dwtriton.evaluate.coco_metrics import CLASS_METRICS, Evaluation

MAX_TILES = 18  # in a gallery
TILE_HEIGHT, MAX_TILE_WIDTH = 220, 400  # pixels
CROP_MARGIN = 0.8  # around a box, as a share of its longer side
DETECTION_COLOUR, OBJECT_COLOUR = "#ff8f00", "#29b6f6"  # orange, blue
MIN_CONFUSION_SCORE = 0.3
MAX_CLASSES_PER_PLOT = 8  # more classes have a small plot each
MAX_CLASS_PLOTS = 80
MAX_MATRIX_CLASSES = 25  # with more classes the most frequent confusions are listed
MAX_CONFUSIONS = 20
EXPLANATIONS = {
    "AP": "mean over IoUs from 0.50 to 0.95",
    "AP50": "at an IoU of 0.50",
    "AP75": "at an IoU of 0.75",
    "AR1": "recall with the highest-scoring detection of each class in an image",
    "AR10": "recall with ten of them",
    "AR100": "recall with a hundred",
}
VISIBLE = {  # control characters and surrogates, which a page cannot show, and their stand-ins
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    **dict.fromkeys([*range(0x7F, 0xA0), *range(0xD800, 0xE000)], 0xFFFD),
}

ImageFile = tuple[Path, tuple[int, int]]  # and the (h, w) that its annotations are for
ReadImage = Callable[[Path, tuple[int, int]], Tensor]  # of such a file, as `read_image`


def report_html(
    evaluation: Evaluation,
    coco: COCO,
    results: list[dict],
    paths: dict[int, str],
    title: str,
    notes: Sequence[str] = (),
    read: ReadImage = read_image,
) -> str:
    """Return the HTML of a report on COCO `results` and their `evaluation` against `coco`.

    `paths` maps image ids to files; an image without a readable file is shown as a grey square. `title` names what was
    evaluated; each of `notes` becomes a paragraph. `read` decodes an image as the evaluation did.
    """
    analysis = tide.analyse(coco, results, evaluation.evaluator)
    names = {id_: str(coco.cats[id_]["name"]) for id_ in sorted(coco.cats)}
    files = {id_: (Path(path), (coco.imgs[id_]["height"], coco.imgs[id_]["width"])) for id_, path in paths.items()}
    sizes = Params("bbox")
    environment = Environment(
        loader=PackageLoader("dwtriton.evaluate", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value.translate(VISIBLE) if isinstance(value, str) else value,
        trim_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        notes=notes,
        date=date.today().isoformat(),
        image_count=len(coco.imgs),
        detection_count=len(results),
        evaluation=evaluation,
        analysis=analysis,
        names=names,
        class_metrics=CLASS_METRICS,
        explanations=EXPLANATIONS,
        sizes=list(zip(sizes.areaRngLbl, sizes.areaRng))[1:],  # without "all"
        ids_by_ap=sorted(names, key=lambda id_: -evaluation.class_ap[names[id_]]),
        objects=Counter(truth.category_id for truth in analysis.truths),
        error_types=tide.ERROR_TYPES,
        special_errors=tide.SPECIAL_ERRORS,  # without bars: they contain others
        largest_cost=max(*(analysis.costs[error] for error in tide.ERROR_TYPES), 1e-9),
        min_confusion_score=MIN_CONFUSION_SCORE,
        misses=[(_tile(files, read, *pair), *pair) for pair in tide.worst_misses(analysis, MAX_TILES)],
        false_positives=[
            (_tile(files, read, *pair), *pair) for pair in tide.worst_false_positives(analysis, MAX_TILES)
        ],
        **_curves(analysis, names),
        **_confusions(analysis, list(names)),
    )


def _curves(analysis: tide.Analysis, names: dict[int, str]) -> dict[str, Any]:
    """Precision over recall of the classes with objects: one plot with a key, or one small plot per class."""
    objects = {truth.category_id for truth in analysis.truths}
    curves = tide.precision_curves(analysis.truths, analysis.detections)
    named = [(names[id_], curve) for id_, curve in curves.items() if id_ in objects]
    if not named:
        return {"curve_plot": None, "curve_tiles": []}
    mean = ("mean of all classes", np.mean([curve for _, curve in named], 0))
    if len(named) <= MAX_CLASSES_PER_PLOT:
        lines = [(*line, colour) for line, colour in zip([mean, *named], ["black", *COLOURS])]
        keys = [(name, curve.mean(), colour) for name, curve, colour in lines]
        return {"curve_plot": _large_plot(lines), "curve_keys": keys, "curve_tiles": []}
    worst = sorted(named, key=lambda line: line[1].mean())[:MAX_CLASS_PLOTS]
    return {"curve_tiles": [(_small_plot(curve), name, curve.mean()) for name, curve in [mean, *worst]]}


def _large_plot(lines: Sequence[tuple[str, np.ndarray, str]]) -> str:
    """Image of (name, curve over tide.RECALLS, colour); the first line is the thickest and on top."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for number, (_, curve, colour) in enumerate(lines):
        axes.plot(tide.RECALLS, curve, color=colour, linewidth=1.3 if number else 2.4, zorder=3 - bool(number))
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    return _plot(figure)


def _small_plot(curve: np.ndarray) -> str:
    figure = Figure(figsize=(1.6, 1.2), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(tide.RECALLS, curve, color=COLOURS[0], alpha=0.3, linewidth=0)
    axes.plot(tide.RECALLS, curve, color=COLOURS[0], linewidth=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[], yticks=[])
    return _plot(figure)


def _confusions(analysis: tide.Analysis, categories: list[int]) -> dict[str, Any]:
    """Rows (class, counts) of the confusion matrix, or the most frequent confusions of many classes."""
    counts = tide.confusion_matrix(analysis, categories, MIN_CONFUSION_SCORE)
    if len(categories) <= MAX_MATRIX_CLASSES:
        return {"matrix": list(zip([*categories, None], counts))}
    confusions = {
        (category, other): count
        for category, row in zip(categories, counts)
        for other, count in zip(categories, row)
        if other != category and count
    }
    return {"matrix": None, "confusions": Counter(confusions).most_common(MAX_CONFUSIONS)}


def _tile(files: dict[int, ImageFile], read: ReadImage, *boxes: tide.Truth | tide.Detection | None) -> str:
    """Image of what surrounds the first box, with all boxes drawn; empty without a readable file."""
    boxes = [box for box in boxes if box is not None]
    try:
        image = read(*files[boxes[0].image_id])
    except (KeyError, BrokenImageError):
        return ""
    height, width = image.shape[1:]
    xywh = torch.tensor([box.bbox for box in boxes], dtype=torch.float32)
    xywh[:, 2:].clamp_(min=0)  # annotations may have negative sides
    corners = clip_boxes_to_image(box_convert(xywh, "xywh", "xyxy"), (height, width))
    x1, y1, x2, y2 = corners[0].tolist()
    margin = CROP_MARGIN * max(x2 - x1, y2 - y1) + 8
    left, top = max(0, int(x1 - margin)), max(0, int(y1 - margin))
    crop = image[:, top : int(y2 + margin) + 1, left : int(x2 + margin) + 1]
    scale = min(TILE_HEIGHT / crop.shape[1], MAX_TILE_WIDTH / crop.shape[2])
    crop = resize(crop, [max(1, round(side * scale)) for side in crop.shape[1:]], antialias=True)
    corners = (corners - torch.tensor([left, top, left, top])) * scale
    labels = [isinstance(box, tide.Truth) for box in boxes]
    drawn = draw_boxes(crop, corners, labels, enlarge_to=0, colours=(DETECTION_COLOUR, OBJECT_COLOUR))
    return _data_uri(encode_jpeg(drawn, 85), "jpeg")


def _plot(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return _data_uri(buffer.getvalue(), "png")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
