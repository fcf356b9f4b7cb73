"""Small data sets as exporters write them: boxes and discs on flat pictures, in COCO's layout and in others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("box", "disc")
COUNTS = {"train": 4, "val": 2}  # images; every second one is upright
SIZES = ((96, 72), (72, 96))


class Picture(NamedTuple):
    """A picture and its objects, (class, x, y, width, height) in whole pixels."""

    image: Image.Image
    objects: list[tuple[int, int, int, int, int]]


def draw(number: int, seed: int) -> Picture:
    """Draw two objects on a picture that is landscape for even numbers."""
    rng = np.random.default_rng((seed, number))
    width, height = SIZES[number % 2]
    image = Image.new("RGB", (width, height), tuple(rng.integers(30, 110, 3).tolist()))
    pen, objects = ImageDraw.Draw(image), []
    for _ in range(2):
        label = int(rng.integers(len(NAMES)))
        w, h = rng.integers(16, 34, 2).tolist()
        x, y = int(rng.random() * (width - w)), int(rng.random() * (height - h))
        (pen.rectangle, pen.ellipse)[label](
            (x, y, x + w - 1, y + h - 1), fill=tuple(rng.integers(150, 256, 3).tolist())
        )
        objects.append((label, x, y, w, h))
    return Picture(image, objects)


def pictures(split: str) -> list[Picture]:
    """The pictures of a split, which differ from those of the other."""
    return [draw(number, seed=list(COUNTS).index(split)) for number in range(COUNTS[split])]


def coco_content(drawn: list[Picture], prefix: str = "", suffix: str = ".jpg") -> dict[str, Any]:
    """COCO's JSON of some pictures, which are called 0001.jpg and so on."""
    images, annotations = [], []
    for number, (image, objects) in enumerate(drawn, 1):
        name = f"{prefix}{number:04}{suffix}"
        images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
        for label, *box in objects:
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1}
            annotations.append({**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "segmentation": []})
    categories = [{"id": label, "name": name, "supercategory": "none"} for label, name in enumerate(NAMES, 1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


Change = Callable[[str, dict[str, Any], Path], object]  # of a split, its content and its folder of images


def write_coco(root: Path, change: Change | None = None, suffix: str = ".jpg", **save: Any) -> Path:
    """Write a data set in COCO's layout, changed by `change(split, content, folder)` after its images are written."""
    for split in COUNTS:
        drawn, folder = pictures(split), root / f"{split}2017"
        folder.mkdir(parents=True)
        for number, picture in enumerate(drawn, 1):
            picture.image.save(folder / f"{number:04}{suffix}", **save)
        content = coco_content(drawn, suffix=suffix)
        if change:
            change(split, content, folder)
        write_json(root / "annotations" / f"instances_{split}2017.json", content)
    return root


def change_all(section: str, **changes: Any) -> Change:
    """Change keys of all records of a section: to a value, or to what a function makes of the record; None drops it."""

    def change(_split: str, content: dict[str, Any], _folder: Path) -> None:
        for record in content[section]:
            for key, value in changes.items():
                record[key] = value(record) if callable(value) else value

    return change


def drop(section: str, *keys: str) -> Change:
    """Drop keys of all records of a section."""

    def change(_split: str, content: dict[str, Any], _folder: Path) -> None:
        for record in content[section]:
            for key in keys:
                record.pop(key)

    return change


def yolo_lines(picture: Picture, label: Callable[[int], str] = str) -> str:
    """The label file of a picture in YOLO's layout."""
    width, height = picture.image.size
    return "".join(
        f"{label(c)} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}\n"
        for c, x, y, w, h in picture.objects
    )


def voc_xml(picture: Picture, name: str) -> str:
    """The XML file of a picture, which counts pixels from 1 and includes the last."""
    width, height = picture.image.size
    objects = "".join(
        f"<object><name>{NAMES[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
        f"<ymax>{y + h}</ymax></bndbox></object>"
        for c, x, y, w, h in picture.objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def labelme_json(picture: Picture, name: str) -> dict[str, Any]:
    """The JSON file of a picture, of rectangles and polygons by turns."""
    shapes = []
    for position, (c, x, y, w, h) in enumerate(picture.objects):
        corners = [[x, y], [x + w, y + h]]
        if position % 2:
            corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
        kind = "polygon" if position % 2 else "rectangle"
        shapes.append({"label": NAMES[c], "points": corners, "shape_type": kind, "flags": {}})
    size = {"imageWidth": picture.image.width, "imageHeight": picture.image.height}
    return {"version": "5.4", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, **size}


def cvat_xml(drawn: dict[str, Picture]) -> str:
    """The XML file of "CVAT for images" of pictures by name, with boxes and polygons by turns."""
    text = ""
    for number, (name, (image, objects)) in enumerate(drawn.items()):
        shapes = ""
        for position, (c, x, y, w, h) in enumerate(objects):
            corners = f'xtl="{x}.00" ytl="{y}.00" xbr="{x + w}.00" ybr="{y + h}.00"'
            points = f'points="{x},{y};{x + w},{y};{x + w},{y + h};{x},{y + h}"'
            kind, place = ("polygon", points) if position % 2 else ("box", corners)
            shapes += f'<{kind} label="{NAMES[c]}" source="manual" occluded="0" {place} z_order="0"></{kind}>'
        size = f'width="{image.width}" height="{image.height}"'
        text += f'<image id="{number}" name="{name}" {size}>{shapes}</image>'
    return f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{text}</annotations>'


def label_studio_tasks(drawn: dict[str, Picture], is_min: bool = False) -> list[dict[str, Any]]:
    """The tasks of Label Studio, or its JSON-MIN, of pictures by name: rectangles and polygons by turns."""
    tasks = []
    for number, (name, (image, objects)) in enumerate(drawn.items(), 1):
        values = []
        for position, (c, *box) in enumerate(objects):
            x, y, w, h = (100 * value / side for value, side in zip(box, image.size * 2))
            shape = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [NAMES[c]]}
            if position % 2:
                points = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
                shape = {"points": points, "closed": True, "polygonlabels": [NAMES[c]]}
            values.append(shape)
        if is_min:
            tasks.append({"image": name, "id": number, "label": values, "annotator": 1, "annotation_id": number})
        else:
            results = [{"id": str(n), "type": "x", "to_name": "image", "value": v} for n, v in enumerate(values)]
            annotations = [{"id": 9, "was_cancelled": True, "result": []}, {"id": 1, "result": results}]
            tasks.append({"id": number, "data": {"image": name}, "annotations": annotations, "predictions": []})
    return tasks


def write_json(path: Path, content: Any) -> None:
    """Write JSON, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_files(root: Path, files: dict[str, str | Image.Image | dict | list]) -> Path:
    """Write texts, pictures and JSON by their paths."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root
