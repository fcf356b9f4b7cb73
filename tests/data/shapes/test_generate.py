import hashlib
import itertools
import json
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import dwtriton.console.progress
from dwtriton.config.load import load_config
from dwtriton.config.schema import Config, ShapesConfig
from dwtriton.data.prepare import prepare_data, prepare_validation
from dwtriton.data.problems import DataError
from dwtriton.data.shapes import generate as shapes
from dwtriton.data.shapes.drawing import OUTLINES, Stamp, paint
from dwtriton.data.shapes.generate import generate_shapes
from dwtriton.data.shapes.scene import CATEGORY_IDS, Scene

TRAIN, VAL = 240, 40


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(folder, TRAIN, VAL, seed=1)
    return folder


@pytest.fixture(scope="module")
def train(root):
    return COCO(root / "annotations" / "train.json")


@pytest.fixture(scope="module")
def objects(train):
    """Boxes of the objects that are no crowd: per image, xyxy [G, 4] and category ids [G]."""
    result = []
    for image_id in train.getImgIds():
        chosen = train.loadAnns(train.getAnnIds([image_id], iscrowd=False))
        xywh = np.array([a["bbox"] for a in chosen]).reshape(-1, 4)
        result.append(
            (xywh + np.pad(xywh[:, :2], [(0, 0), (2, 0)]), np.array([a["category_id"] for a in chosen], dtype=int))
        )
    return result


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_gives_the_same_bytes_with_one_process_or_several(tmp_path, monkeypatch):
    for name, processes, seed in (("a", 1, 5), ("b", 3, 5), ("c", 2, 6)):
        monkeypatch.setattr("os.cpu_count", lambda processes=processes: processes)
        generate_shapes(tmp_path / name, 20, 4, seed)
    first, same, other = (digests(tmp_path / name) for name in "abc")
    assert len(first) == 26
    assert first == same
    assert not set(first.values()) & set(other.values())


def test_train_and_val_share_no_image_nor_id(root):
    hashes = list(digests(root).values())
    assert len(set(hashes)) == len(hashes) == TRAIN + VAL + 2
    splits = [json.loads((root / "annotations" / f"{split}.json").read_text()) for split in ("train", "val")]
    ids = [image["id"] for content in splits for image in content["images"]]
    assert len(set(ids)) == TRAIN + VAL


def test_category_ids_are_neither_contiguous_nor_from_zero(train):
    ids = sorted(train.getCatIds())
    assert len(ids) == 8
    assert ids[0] > 0
    assert ids != list(range(ids[0], ids[0] + 8))
    assert {category["name"] for category in train.loadCats(ids)} == set(OUTLINES)


def test_files_are_jpegs_of_the_sizes_stated(root, train):
    for image in train.loadImgs(train.getImgIds()):
        with Image.open(root / "train" / image["file_name"]) as file:
            assert file.format == "JPEG"
            assert file.size == (image["width"], image["height"])
    sizes = np.array([(image["width"], image["height"]) for image in train.dataset["images"]])
    assert sizes.min() >= 120
    assert sizes.max() <= 320
    assert sizes.min() < 130
    assert sizes.max() > 280
    assert 0.35 < (sizes[:, 0] > sizes[:, 1]).mean() < 0.65  # landscape and portrait


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, in annToMask
def test_annotations_agree_with_their_masks_and_images(train):
    assert [a["id"] for a in train.dataset["annotations"]] == list(range(1, len(train.anns) + 1))
    for annotation in train.dataset["annotations"]:
        image = train.imgs[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= image["width"]
        assert y + height <= image["height"]
        mask = train.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == annotation["area"] > 0
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # pixels less than half covered, as at a star's tips, are in the box but not in the mask
        assert np.abs(extent - (x, y, x + width, y + height)).max() <= 2


def test_scales_counts_and_contents_are_as_varied_as_promised(train, objects):
    counts = np.array([len(boxes) for boxes, _ in objects])
    crowded_images = {a["image_id"] for a in train.dataset["annotations"] if a["iscrowd"]}
    assert (counts == 0).sum() >= 3
    assert (counts > 15).sum() >= 5
    assert counts.max() <= 30
    assert 2 <= np.median(counts) <= 6
    assert len(crowded_images) >= 3
    longest = np.concatenate([(boxes[:, 2:] - boxes[:, :2]).max(1) for boxes, _ in objects])
    assert longest.min() < 14
    assert np.percentile(longest, 5) < 16
    assert longest.max() > 120
    labels = np.concatenate([labels for _, labels in objects])
    assert min((labels == id_).sum() for id_ in CATEGORY_IDS.values()) > 0.5 * len(labels) / 8


def test_boxes_overlap_also_within_a_class(objects):
    same_class = 0
    for boxes, labels in objects:
        corner = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        sides = np.clip(np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corner, 0, None)
        overlap = (sides.prod(-1) > 0) & (labels[:, None] == labels)
        same_class += (overlap.sum() - len(labels)) // 2
    assert same_class > 200  # chance alone gives 100


def test_crowds_are_heaps_larger_than_their_parts(train):
    crowds = [a for a in train.dataset["annotations"] if a["iscrowd"]]
    for crowd in crowds:
        assert min(crowd["bbox"][2:]) > 15
        assert 0.05 < crowd["area"] / np.prod(crowd["bbox"][2:]) < 0.9


@pytest.mark.parametrize("name", OUTLINES)
def test_every_object_is_visible_in_the_image(name):
    rng = np.random.default_rng(0)
    scene = Scene(100, 100, rng)
    before = scene.image.copy()
    stamp = Stamp(name, np.array([50.0, 50.0]), 14, scene.image, rng)
    paint(scene.image, stamp, True, rng)
    changed = np.abs(scene.image - before).mean(-1)
    assert np.median(changed[stamp.mask]) > 40
    assert (changed[~stamp.mask] > 0).sum() < 80  # the soft rim
    box = stamp.box()
    assert 10 < (box[2:] - box[:2]).max() < 18


def test_objects_stay_visible_enough_to_be_told():
    for seed in range(30):
        scene = Scene(150, 200, np.random.default_rng(seed))
        scene.add_objects(15, largest=0.9)
        assert len(scene.annotations) >= 3
        assert all(seen.sum() >= least for seen, least in zip(scene.visible, scene.needed))


def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    @contextmanager
    def interrupting(*_):
        def advance():
            if next(calls) == 3:
                assert any(tmp_path.rglob("*.jpg"))
                raise KeyboardInterrupt

        calls = itertools.count(1)
        yield advance

    monkeypatch.setattr(shapes, "progress", interrupting)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / "shapes", 5, 2, 0)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_to_the_console_that_is_given_and_to_no_other(tmp_path, console, monkeypatch, capfd):
    monkeypatch.setattr(dwtriton.console.progress, "SECONDS_BETWEEN_LINES", 0)
    generate_shapes(tmp_path / "a", 3, 2, 0, console)
    told = console.file.getvalue()
    assert "drawing train shapes  3/3" in told
    assert "drawing val shapes  2/2" in told
    generate_shapes(tmp_path / "b", 3, 2, 0)
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="not an empty folder"):
        generate_shapes(tmp_path, 2, 2, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def small(root, **changes) -> Config:
    values = {"root": root, "shapes": {"train_images": 12, "val_images": 4, "seed": 0}, "workers": 0, **changes}
    cfg = load_config("shapes")
    return Config.model_validate({**cfg.model_dump(), "data": {**cfg.data.model_dump(), **values}})


def test_prepare_data_draws_shapes_once_where_there_is_nothing(tmp_path):
    cfg = small(tmp_path / "new" / "shapes")
    train, val = prepare_data(cfg)
    assert train.class_names == val.class_names
    assert len(val) == 4
    before = digests(cfg.data.root)
    assert len(prepare_validation(cfg)) == 4
    assert digests(cfg.data.root) == before


def test_shapes_of_other_settings_stop(tmp_path):
    prepare_data(small(tmp_path / "shapes"))
    other = small(tmp_path / "shapes", shapes={"train_images": 12, "val_images": 4, "seed": 9})
    with pytest.raises(DataError, match=r"'seed': 0.*asks for.*'seed': 9.*delete the folder"):
        prepare_data(other)


def test_own_data_at_the_root_of_a_shapes_config_is_used(tiny):
    data = tiny.write().model_copy(update={"shapes": small(tiny.root).data.shapes})
    train, _ = prepare_data(Config(data=data, head={"num_classes": 3}))
    assert train.class_names == ["train", "kite", "zebra"]


def test_crowded_shapes_have_many_objects_in_every_image_and_are_no_ordinary_ones(tmp_path):
    generate_shapes(tmp_path / "shapes", 6, 2, seed=1, crowded=True)
    found = COCO(tmp_path / "shapes" / "annotations" / "train.json")
    counts = [len(found.getAnnIds([image_id])) for image_id in found.getImgIds()]
    assert min(counts) >= 10  # of 16 to 30, some find no place
    settings = {"train_images": 6, "val_images": 2, "seed": 1}
    shapes.check_shapes(found.dataset["info"], tmp_path, ShapesConfig(**settings, crowded=True))
    with pytest.raises(DataError, match="delete the folder to draw them anew"):
        shapes.check_shapes(found.dataset["info"], tmp_path, ShapesConfig(**settings))
