"""Which images of a COCO file can be used: their files exist and can be decoded, turned as their annotations are."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dwtriton.config.schema import DataConfig
from dwtriton.data.annotations import Records
from dwtriton.data.image_files import find_file, nearest_file
from dwtriton.data.images import (
    BrokenImageError,
    Header,
    decode,
    is_nearly_black,
    read_header,
    read_image,
)
from dwtriton.data.problems import DataError, DataProblems
from dwtriton.data.values import Id

SAMPLE = 256  # images whose headers settle `data.exif = "auto"` and tell whether there are images of 16 bits
DECODED_SAMPLE = 8  # images of 16 bits that are looked at

Image = dict[str, Any]  # a record


class MissingImagesError(DataError):
    """Not a single image file is where the data set has them."""


def images_with_files(
    records: Records, folder: Path, training: bool, cfg: DataConfig, problems: DataProblems
) -> list[Image]:
    """Return the images whose files exist, named by them and with the size of the file where the record has none.

    Raises MissingImagesError, which names a path and the nearest file, if there is none.
    """
    fate = "image skipped" if training else "image skipped, but its ground truth still counts"
    images = []
    for image in records.images.values():
        given = image["file_name"]
        found = find_file(folder, given)
        if found is None or (found != given and found == image.get("drawn")):  # not the picture with predict's boxes
            problems.add(f"image file missing, {fate}", str(folder / given))
            continue
        if found != given:
            problems.note("image found under another name than annotated", f"{given} is {found}")
        image["file_name"] = found
        if image["width"] is None or image["height"] is None:
            try:
                header = read_header(folder / found, cfg.max_pixels)
            except BrokenImageError as error:
                problems.add(f"image without a size, and its file cannot be used, {fate}", str(error))
                continue
            image["height"], image["width"] = header.stored_size if cfg.exif == "ignore" else header.upright_size
            problems.note("image without a size, that of the file is used", found)
        images.append(image)
    if not images:
        raise MissingImagesError(_no_image(records, folder, problems))
    return images


def _no_image(records: Records, folder: Path, problems: DataProblems) -> str:
    if not records.images:
        return f"{records.path} names no image"
    first = next(iter(records.images.values()))
    name = first["file_name"]
    if "drawn" in first:
        return (
            f"none of the images of {records.path} is in {folder}: looked for {folder / name}; `predict` writes paths "
            "as it was given them, so run this in the folder where it ran"
        )
    if find_file(folder, name) is not None:
        return f"{records.path}: no image is left; {'; '.join(problems.summary())}"
    nearest = nearest_file(folder, name)
    there = f"the nearest file is {nearest}" if nearest else "no image lies there"
    reason = ", which holds backslashes" if "\\" in name else ""
    return f"none of the images of {records.path} is in {folder}: looked for {folder / name}{reason}; {there}"


def choose_exif(images: Sequence[Image], folder: Path, setting: str, problems: DataProblems) -> str:
    """Settle `data.exif` for a data set.

    With "auto", images whose orientation swaps width and height tell by their annotated sizes whether annotations are
    of the file as it lies; if all of a sample say so, the others are taken so too, whose sizes do not tell.
    """
    if setting != "auto":
        return setting
    votes = set()
    for image, header in _sampled_headers(images, folder):
        size = image["height"], image["width"]
        if header.stored_size != header.upright_size and size in (header.stored_size, header.upright_size):
            votes.add("ignore" if size == header.stored_size else "apply")
    if votes == {"ignore"}:
        problems.warn(
            "annotations are of the images as they lie in their files, not turned as their EXIF orientation says; both "
            "are used so (data.exif = ignore)"
        )
        return "ignore"
    return "auto"


def warn_of_dark_images(images: Sequence[Image], folder: Path, cfg: DataConfig, problems: DataProblems) -> None:
    """Warn if images of 16 bits use 12 of them at most: of a sample, those with 16 bits are decoded."""
    dark = []
    deep = [image for image, header in _sampled_headers(images, folder) if header.has_16_bits]
    deep = deep[:: -(-len(deep) // DECODED_SAMPLE) or 1]
    for image in deep:
        with suppress(BrokenImageError):
            if is_nearly_black(decode(folder / image["file_name"], None, cfg.exif, cfg.max_pixels)):
                dark.append(image["file_name"])
    if dark:
        problems.warn(
            f"{len(dark)} of {len(deep)} images of 16 bits that were looked at use 12 of them at most, such as "
            f"{dark[0]}: they show as nearly black; multiply their values by 16"
        )


def _sampled_headers(images: Sequence[Image], folder: Path) -> Iterator[tuple[Image, Header]]:
    """Yield images spread over a data set with their headers, where they can be read."""
    for index in np.linspace(0, len(images) - 1, min(len(images), SAMPLE)).round().astype(int).tolist():
        with suppress(BrokenImageError):
            yield images[index], read_header(folder / images[index]["file_name"])


def read_annotated(image: Image, folder: Path, cfg: DataConfig) -> Tensor:
    """Read the image of a record. Raises BrokenImageError, also for another size than the record's."""
    return read_image(folder / image["file_name"], (image["height"], image["width"]), cfg.exif, cfg.max_pixels)


def readable_images(
    images: Sequence[Image], folder: Path, training: bool, cfg: DataConfig, problems: DataProblems
) -> list[Image]:
    """Return the images without those whose orientation has none that can be read: a batch has one orientation.

    Of each orientation images are read up to the first that can be used; in evaluation all are one orientation.
    Raises DataError if no image can be read at all.
    """

    def is_wide(image: Image) -> bool:
        return training and image["width"] > image["height"]

    unusable: dict[Id, str] = {}  # reasons by image, of orientations without an image that can be read
    for wide in sorted(set(map(is_wide, images))):
        group = [image for image in images if is_wide(image) == wide]
        broken = {}
        for image in group:
            try:
                read_annotated(image, folder, cfg)
                break
            except BrokenImageError as error:
                broken[image["id"]] = str(error)
        if len(broken) == len(group):
            unusable |= broken
    errors = [unusable[image["id"]] for image in images if image["id"] in unusable]
    if len(errors) == len(images):
        raise DataError(f"none of the {len(images)} images can be read; the first: {errors[0]}")
    for error in errors:
        problems.add("image file that cannot be used, nor any other of its orientation, left out", error)
    return [image for image in images if image["id"] not in unusable]
