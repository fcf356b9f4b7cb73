"""Whole exports of labelling tools, as they lie on a disk once unpacked, with the keys that each tool writes."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.support.real_data import NAMES, Picture, draw, voc_xml, write_files, yolo_lines

TRAIN, VAL = 48, 12  # images; a tool without splits exports them together


def roboflow_coco(root: Path) -> Path:
    """COCO of Roboflow: a folder a split, ids from 0, and a category that only groups the others."""
    files = {"README.roboflow.txt": "shapes - v1", "README.dataset.txt": "# shapes > v1"}
    group = {"id": 0, "name": "shapes", "supercategory": "none"}
    classes = [{"id": n, "name": name, "supercategory": "shapes"} for n, name in enumerate(NAMES, 1)]
    for split, drawn in (("train", _draw(TRAIN, 0)), ("valid", _draw(VAL, 1)), ("test", _draw(4, 2))):
        images, annotations = [], []
        for number, picture in enumerate(drawn):
            name = f"{number:04}_jpg.rf.{number:032x}.jpg"
            files[f"{split}/{name}"] = picture.image
            size = {"height": picture.image.height, "width": picture.image.width}
            record = {"id": number, "license": 1, "file_name": name, **size, "date_captured": "2026-01-01T00:00:00"}
            images.append(record | {"extra": {"name": f"{number:04}.jpg"}})
            for label, *box in picture.objects:
                ids = {"id": len(annotations), "image_id": number, "category_id": label + 1}
                annotations.append({**ids, "bbox": box, "area": box[2] * box[3], "segmentation": [], "iscrowd": 0})
        content = {"info": {"year": "2026"}, "licenses": [{"id": 1}], "categories": [group, *classes]}
        files[f"{split}/_annotations.coco.json"] = content | {"images": images, "annotations": annotations}
    return write_files(root, files)


def cvat_coco(root: Path) -> Path:
    """COCO 1.0 of a CVAT task: one split called default, attributes on each box."""
    images, annotations, files = [], [], {}
    for number, picture in enumerate(_draw(TRAIN + VAL, 0), 1):
        name = f"frame_{number:06}.jpg"
        files[f"images/default/{name}"] = picture.image
        size = {"width": picture.image.width, "height": picture.image.height}
        links = {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0}
        images.append({"id": number, **size, "file_name": name, **links})
        for label, *box in picture.objects:
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "segmentation": []}
            values = {"area": float(box[2] * box[3]), "bbox": list(map(float, box)), "iscrowd": 0}
            annotations.append({**ids, **values, "attributes": {"occluded": False, "rotation": 0.0}})
    categories = [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(NAMES, 1)]
    info = {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""}
    content = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": info, "categories": categories}
    files["annotations/instances_default.json"] = content | {"images": images, "annotations": annotations}
    return write_files(root, files)


def label_studio_yolo(root: Path) -> Path:
    """YOLO of Label Studio: one folder of images with a prefix to each name, and no data.yaml."""
    notes = {"categories": [{"id": n, "name": name} for n, name in enumerate(NAMES)], "info": {"year": 2026}}
    files = {"classes.txt": "".join(f"{name}\n" for name in NAMES), "notes.json": notes}
    for number, picture in enumerate(_draw(TRAIN + VAL, 0)):
        files[f"images/{number:08x}-shot.jpg"] = picture.image
        files[f"labels/{number:08x}-shot.txt"] = yolo_lines(picture)
    return write_files(root, files)


def labelimg_voc(root: Path) -> Path:
    """Pascal VOC of labelImg: an XML file beside each image, and no lists."""
    files = {}
    for number, picture in enumerate(_draw(TRAIN + VAL, 0)):
        files[f"IMG_{number:04}.jpg"] = picture.image
        files[f"IMG_{number:04}.xml"] = voc_xml(picture, f"IMG_{number:04}.jpg").replace(
            "</name>", "</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        )
    return write_files(root, files)


def aerial_voc(root: Path) -> Path:
    """Pascal VOC of a tool without lists: large and small photographs from above, of hundreds of small objects."""
    files, rng = {}, np.random.default_rng(0)
    for number, (width, height) in enumerate(((1000, 900), (600, 500), (400, 400), (400, 400))):
        image = Image.new("RGB", (width, height), (70, 90, 60))
        pen, objects = ImageDraw.Draw(image), []
        for left, top in itertools.product(range(10, width - 40, 50), range(10, height - 40, 50)):
            label = int(rng.integers(len(NAMES)))
            x, y = left + int(rng.integers(12)), top + int(rng.integers(12))
            (pen.rectangle, pen.ellipse)[label]((x, y, x + 23, y + 23), fill=(200, 180, 90))
            objects.append((label, x, y, 24, 24))
        picture = Picture(image, objects)
        files |= {f"plot{number}.jpg": image, f"plot{number}.xml": voc_xml(picture, f"plot{number}.jpg")}
    return write_files(root, files)


def fiftyone_coco(root: Path) -> Path:
    """COCO of FiftyOne, exported split by split: `train/data`, `train/labels.json` and so on."""
    files, categories = {}, [{"id": n, "name": name, "supercategory": None} for n, name in enumerate(NAMES)]
    for split, drawn in (("train", _draw(TRAIN, 0)), ("val", _draw(VAL, 1))):
        images, annotations = [], []
        for number, picture in enumerate(drawn, 1):
            files[f"{split}/data/{number:06}.jpg"] = picture.image
            size = {"height": picture.image.height, "width": picture.image.width}
            images.append({"id": number, "file_name": f"{number:06}.jpg", **size, "license": None, "coco_url": None})
            for label, *box in picture.objects:
                ids = {"id": len(annotations) + 1, "image_id": number, "category_id": label}
                annotations.append({**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        content = {"info": {"year": "", "version": ""}, "licenses": [], "categories": categories}
        files[f"{split}/labels.json"] = content | {"images": images, "annotations": annotations}
    return write_files(root, files)


EXPORTS: dict[str, Callable[[Path], Path]] = {
    "roboflow": roboflow_coco,
    "cvat": cvat_coco,
    "label-studio": label_studio_yolo,
    "labelimg": labelimg_voc,
    "fiftyone": fiftyone_coco,
}


def _draw(count: int, seed: int) -> list[Picture]:
    return [draw(number, seed) for number in range(count)]
