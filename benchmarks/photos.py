"""Generated photographs in COCO layout, with image sizes, file sizes and noise like COCO's."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = (
    (480, 640),
    (480, 640),
    (427, 640),
    (640, 480),
)  # (h, w): the most common of COCO, three quarters of them landscape
BOXES = 7  # an image, the mean of COCO
CLASSES = 80
QUALITY = 90  # of the JPEG files
SLOPE = 1.1  # the amplitude of spatial frequency f is f**-SLOPE, about as in natural scenes


def write_photos(root: Path, count: int, seed: int = 0) -> int:
    """Write `count` training images with boxes in COCO layout below `root`; return the mean size of a file in bytes.

    An image is noise with the falling spectrum of natural scenes, its channels correlated as brightness and faint
    colour. Its file is about as large as COCO's, whose mean is 160 kB.
    """
    rng = np.random.default_rng(seed)
    folder = root / "train2017"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for id_ in range(1, count + 1):
        height, width = SIZES[id_ % len(SIZES)]
        name = f"{id_:012}.jpg"
        Image.fromarray(photo(rng, height, width)).save(folder / name, quality=QUALITY)
        images.append({"id": id_, "file_name": name, "height": height, "width": width})
        for x, y, w, h in rng.uniform(0.05, 0.5, (BOXES, 4)) * (width, height, width, height):
            annotation = {"image_id": id_, "category_id": int(rng.integers(CLASSES)), "bbox": [x, y, w, h]}
            annotations.append({"id": len(annotations) + 1, "area": w * h, "iscrowd": 0, **annotation})
    categories = [{"id": id_, "name": f"class {id_}"} for id_ in range(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return sum(file.stat().st_size for file in folder.iterdir()) // count


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return noise with the spectrum of a photograph, uint8 [h, w, 3]."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))  # [h, w // 2 + 1]
    frequency[0, 0] = np.inf  # no constant part
    spectrum = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency**SLOPE
    planes = np.fft.irfft2(spectrum, s=(height, width))
    brightness, blue, red = planes / planes.std((1, 2), keepdims=True)
    rgb = np.stack([brightness + 0.3 * red, brightness - 0.1 * blue - 0.15 * red, brightness + 0.4 * blue], -1)
    return (120 + 50 * rgb).clip(0, 255).astype(np.uint8)
