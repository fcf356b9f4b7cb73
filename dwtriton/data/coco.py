"""Detection data in COCO format as a torch data set."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.ops import box_convert

from dwtriton.config import DataConfig
from dwtriton.data.annotations import read_annotations
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.data.layout import Split, layout_error, split_paths
from dwtriton.data.report import DataError, DataReport
from dwtriton.data.transforms import draw_augmentation, resized_size, transform

MIN_IMAGE_SIDE = 32  # pixels; smaller images are left out of training (recipe, section Data)


@dataclass
class Example:
    """One image, ready for a batch. `image` is None if no file could be read; `broken` says why."""

    image: torch.Tensor | None  # uint8 [3, h, w]
    target: dict[str, torch.Tensor]  # boxes float32 [G, 4] xyxy network pixels, labels int64 [G], perhaps iscrowd [G]
    image_id: int
    path: str
    scale_factor: tuple[float, float]  # (sx, sy), network pixels per original pixel
    broken: list[str] = field(default_factory=list)  # "PATH: reason", the files that could not be read


class CocoDataset(Dataset):
    """One split of a data set in COCO format (recipe, section Data).

    `"train"` leaves out images without a usable box or with a side under 32 pixels, and augments; `"val"` keeps every
    image whose file exists. Boxes that are crowd, have no area or a side under 1 pixel are dropped from the targets;
    with `keep_crowd` the crowd boxes stay, and targets mark them in `"iscrowd"` (G,) bool.

    Public attributes: `class_names` and `category_ids` (by label 0..C-1, in the order of the sorted category ids),
    `coco` (pycocotools' COCO, the ground truth for COCOeval), `landscape` (bool array, item wider than high),
    `aspects` (height / width of each item), `image_ids` and `paths` of the items, `report` (what was left out, why).

    Items are addressed by `index` or `(index, seed)`; the seed decides the augmentation and nothing else does.
    Raises DataError if the files cannot be used.
    """

    def __init__(self, cfg: DataConfig, split: Split, keep_crowd: bool = False) -> None:
        self.cfg = cfg
        self.training = split == "train"
        self.keep_crowd = keep_crowd
        self.report = DataReport()
        paths = split_paths(cfg, split)
        self.coco = read_annotations(paths.annotations, self.report)
        categories = sorted(self.coco.dataset["categories"], key=lambda category: category["id"])
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.class_names: list[str] = [category["name"] for category in categories]

        targets = self._targets()
        images = self._with_file(paths.images)
        if not images:
            raise layout_error(cfg, f"none of the images of {paths.annotations} is in {paths.images}")
        if self.training:
            images = [image for image in images if self._trainable(image, targets[image["id"]])]
        if not images:
            raise DataError(f"{paths.annotations}: no image is left; {'; '.join(self.report.summary())}")
        self._targets_by_item = [targets[image["id"]] for image in images]
        self.paths = [str(paths.images / image["file_name"]) for image in images]
        self.image_ids: list[int] = [image["id"] for image in images]
        self._sizes = np.array([(image["height"], image["width"]) for image in images])  # [N, 2]
        self.landscape = self._sizes[:, 1] > self._sizes[:, 0]
        self.aspects = self._sizes[:, 0] / self._sizes[:, 1]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int | tuple[int, int]) -> Example:
        """The example. If its file is broken, training takes the next item of the same orientation that is not."""
        index, seed = item if isinstance(item, tuple) else (item, 0)
        broken: list[str] = []
        for candidate in self._candidates(index):
            try:
                return self._example(candidate, seed, broken)
            except BrokenImageError as error:
                broken.append(str(error))
        return Example(None, {}, self.image_ids[index], self.paths[index], (1.0, 1.0), broken)

    def padded_size(self, index: int) -> tuple[int, int]:
        """(h, w) of an item of the `"val"` split in the network: resized, and padded to the size divisor."""
        divisor = self.cfg.size_divisor
        size = resized_size(*self._sizes[index].tolist(), self.cfg.test_short_side, self.cfg.test_long_side)
        return tuple(-(-side // divisor) * divisor for side in size)

    def _candidates(self, index: int) -> Iterator[int]:
        """The item itself; in training then the others of its orientation, in the order that follows it."""
        yield index
        if self.training:
            following = np.roll(np.arange(len(self)), -index)[1:]
            yield from following[self.landscape[following] == self.landscape[index]]

    def _example(self, index: int, seed: int, broken: list[str]) -> Example:
        height, width = self._sizes[index].tolist()
        image = read_image(Path(self.paths[index]), (height, width))
        target = {key: torch.from_numpy(value.copy()) for key, value in self._targets_by_item[index].items()}
        if self.training:
            short_side, flipped = draw_augmentation(self.cfg, seed)
            sides = short_side, self.cfg.long_side
        else:
            sides, flipped = (self.cfg.test_short_side, self.cfg.test_long_side), False
        image, target["boxes"], scale_factor = transform(image, target["boxes"], self.cfg, *sides, flipped)
        return Example(image, target, self.image_ids[index], self.paths[index], scale_factor, broken)

    def _targets(self) -> dict[int, dict[str, np.ndarray]]:
        """Targets in original pixels, by image id; images without a usable box have empty ones."""
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        usable = defaultdict(list)
        for annotation in self.coco.dataset["annotations"]:
            if self._usable(annotation):
                usable[annotation["image_id"]].append(annotation)
        targets = {}
        for image_id in self.coco.imgs:
            chosen = usable[image_id]
            xywh = torch.tensor([a["bbox"] for a in chosen], dtype=torch.float32).reshape(-1, 4)
            targets[image_id] = {
                "boxes": box_convert(xywh, "xywh", "xyxy").numpy(),
                "labels": np.array([label_of[a["category_id"]] for a in chosen], dtype=np.int64),
            }
            if self.keep_crowd:
                targets[image_id]["iscrowd"] = np.array([bool(a["iscrowd"]) for a in chosen], dtype=bool)
        return targets

    def _usable(self, annotation: dict[str, Any]) -> bool:
        width, height = annotation["bbox"][2:]
        if annotation["area"] <= 0 or width < 1 or height < 1:
            image = self.coco.imgs[annotation["image_id"]]["file_name"]
            kind = "box without area or under 1 pixel, not used as a target"
            self.report.add(kind, f"annotation {annotation['id']} of image {annotation['image_id']} ({image})")
            return False
        return self.keep_crowd or not annotation["iscrowd"]

    def _with_file(self, folder: Path) -> list[dict[str, Any]]:
        kind = "image file missing, image skipped"
        if not self.training:
            kind += ", but its ground truth still counts"
        images = []
        for image in self.coco.dataset["images"]:
            if (folder / image["file_name"]).is_file():
                images.append(image)
            else:
                self.report.add(kind, str(folder / image["file_name"]))
        return images

    def _trainable(self, image: dict[str, Any], target: dict[str, np.ndarray]) -> bool:
        if min(image["width"], image["height"]) < MIN_IMAGE_SIDE:
            self.report.add(f"image with a side under {MIN_IMAGE_SIDE} pixels, not trained on", image["file_name"])
            return False
        if np.count_nonzero(~target["iscrowd"]) if self.keep_crowd else len(target["boxes"]):
            return True
        self.report.add("image without a usable box, not trained on", image["file_name"])
        return False
