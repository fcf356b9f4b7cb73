"""Images cut into tiles: every pixel and every object is in one, at its place."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dwtriton.config.load import load_config
from dwtriton.data import __main__ as command
from dwtriton.data.annotations import Records
from dwtriton.data.formats.splits import find_splits
from dwtriton.data.formats.tiles import KEPT_SHARE, tile_offsets, tile_size
from tests.support.real_data import write_files

WIDTH, HEIGHT, SIZE = 300, 200, 96


@given(st.integers(1, 3000), st.integers(32, 900), st.floats(0, 0.9))
def test_tiles_cover_a_side_from_end_to_end_and_overlap_as_asked(length, size, overlap):
    offsets = tile_offsets(length, size, overlap)
    assert offsets[0] == 0
    assert max(offsets) + min(size, length) == length
    steps = np.diff(offsets)
    assert (steps > 0).all()
    assert (steps <= size * (1 - overlap) + 1).all()


@pytest.fixture
def cut(tmp_path, call):
    """A data set of one split, its image cut into tiles: (folder, content, what was printed)."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "black")
    pen, annotations = ImageDraw.Draw(image), []
    rng = np.random.default_rng(0)
    for number in range(1, 41):
        x, y = int(rng.integers(WIDTH - 12)), int(rng.integers(HEIGHT - 12))
        pen.rectangle((x, y, x + 11, y + 11), fill=(6 * number, 255 - 6 * number, 120))
        box = {"bbox": [x, y, 12, 12], "area": 100, "iscrowd": int(number == 3), "weight": 0.5}
        annotations.append({"id": number, "image_id": "a", "category_id": 1, **box})
    annotations.append(
        {"id": 41, "image_id": "a", "category_id": 1, "bbox": [0, 0, 300, 200], "area": 100, "iscrowd": 0}
    )
    images = [{"id": "a", "file_name": "site/a.png", "width": WIDTH, "height": HEIGHT}]
    images.append({"id": "b", "file_name": "gone.png", "width": 40, "height": 40})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    write_files(tmp_path / "data", {"images/site/a.png": image, "labels.json": content})
    words = [tmp_path / "data", "--size", SIZE, "--overlap", 0.25, "--out", tmp_path / "tiles"]
    code, printed, error = call(command, "tile", *words)
    assert (code, error) == (0, "")
    written = json.loads((tmp_path / "tiles/annotations/instances_train2017.json").read_text())
    return tmp_path, (image, annotations), written, printed


def test_tiles_hold_the_pixels_and_the_boxes_of_their_places(cut):
    root, (image, annotations), written, printed = cut
    whole, covered = np.asarray(image).astype(int), np.zeros((HEIGHT, WIDTH), dtype=bool)
    found = {}
    for tile in written["images"]:
        top, left = (int(part) for part in tile["file_name"].removesuffix(".jpg").split("_")[-2:])
        pixels = np.asarray(Image.open(root / "tiles/train2017" / tile["file_name"])).astype(int)
        assert pixels.shape[:2] == (tile["height"], tile["width"]) == (SIZE, SIZE)
        assert np.abs(pixels - whole[top : top + SIZE, left : left + SIZE]).mean() < 4  # JPEG
        covered[top : top + SIZE, left : left + SIZE] = True
        for box in (box for box in written["annotations"] if box["image_id"] == tile["id"]):
            x, y, w, h = box["bbox"]
            assert 0 <= x < x + w <= SIZE
            assert 0 <= y < y + h <= SIZE
            found.setdefault((tile["id"], left + x, top + y, w, h), box)
        for number, truth in enumerate(annotations):
            x, y, w, h = truth["bbox"]
            x1, y1, x2, y2 = max(x, left), max(y, top), min(x + w, left + SIZE), min(y + h, top + SIZE)
            if min(x2 - x1, y2 - y1) >= 1:
                box = found.pop((tile["id"], x1, y1, x2 - x1, y2 - y1))
                share = (x2 - x1) * (y2 - y1) / (w * h)
                assert box["area"] == pytest.approx(100 * share)
                assert box["iscrowd"] == (number == 2 or share < KEPT_SHARE)
                assert box["weight"] == (1 if number == 40 else 0.5)
    assert covered.all()
    assert found == {}
    assert "1 x image file missing" in printed
    assert "1 x object too large for a tile to hold half of it: annotation 41 of image a (site/a.png)" in printed


def test_what_is_printed_is_what_was_written_and_check_finds_it(cut):
    root, _, written, printed = cut
    objects = sum(not box["iscrowd"] for box in written["annotations"])
    with_objects = {box["image_id"] for box in written["annotations"] if not box["iscrowd"]}
    empty = len(written["images"]) - len(with_objects)
    assert f"train: {len(written['images'])} tiles with {objects} objects, {empty} with none" in printed
    assert printed.splitlines()[-1] == f"look at it: python -m dwtriton.data check {root / 'tiles'}"
    assert [split.name for split in find_splits(root / "tiles")[0]] == ["train2017"]


def test_bad_sizes_are_one_clear_error(cut, call):
    root, *_ = cut
    for options, message in (
        (["--size", 8], "--size is at least 32 pixels, not 8"),
        (["--overlap", 1], "--overlap is a share of a tile's side from 0 up to 1, such as 0.2, not 1"),
        ([], "already holds a data set: add --force"),
    ):
        code, _, error = call(command, "tile", root / "data", "--out", root / "tiles", *options)
        assert (code, message in error) == (2, True), error


def test_tiles_are_suggested_where_objects_become_smaller_than_the_finest_stride():
    cfg = load_config("small").data  # 160 pixels on the short side
    records = Records("a.json", {}, {1: {"height": 1600, "width": 2000}}, {}, {}, [])

    def suggested(side):
        return tile_size(records, {1: [{"bbox": [0, 0, side, side]}]}, cfg)

    assert suggested(80) is None  # 160 pixels of 1600
    assert suggested(72) == 480
    assert suggested(54) == 352  # 160 x 54 / 24 = 360
    assert suggested(2) == 32
