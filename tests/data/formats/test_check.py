"""`python -m dwtriton.data check`: what it finds in a data set, what it draws, and the command that it suggests."""

import io
import json
import shlex

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dwtriton.config.fit import fit_to_data
from dwtriton.config.load import load_config
from dwtriton.config.schema import Config
from dwtriton.console.drawing import COLOURS
from dwtriton.data import __main__ as command
from dwtriton.data.formats.check import check_split, draw_sheet
from dwtriton.data.formats.splits import choose_splits, find_splits, training_command
from dwtriton.data.images import BrokenImageError, read_image, upright_size
from dwtriton.data.prepare import prepare_data
from dwtriton.train import __main__ as train_command
from dwtriton.train.optimizer import check_warmup

FAILS_ON_NAN = {"parse_constant": lambda name: pytest.fail(f"{name} in JSON")}


@pytest.fixture
def check(call, monkeypatch):
    """Run the command for its figures, with nothing in its sheets: (exit code, JSON, standard error)."""
    monkeypatch.setattr(command, "draw_sheet", lambda found: Figure(figsize=(1, 1)))

    def run(root, *options):
        code, printed, error = call(command, "check", root, "--out", root.parent / "sheets", "--json", *options)
        return code, json.loads(printed, **FAILS_ON_NAN) if printed else None, error

    return run


def kinds(result, split=0):
    return {kind: (p["count"], p["examples"]) for kind, p in result["splits"][split]["problems"].items()}


# --- figures


def test_figures_of_a_clean_set(tiny, check):
    tiny.write()
    code, result, error = check(tiny.root)
    assert (code, error) == (0, "")
    assert [split["split"] for split in result["splits"]] == ["train2017", "val2017"]
    assert [split["image_folder"] for split in result["splits"]] == [
        str(tiny.root / f"{s}2017") for s in ("train", "val")
    ]
    for split in result["splits"]:
        assert (split["images"], split["boxes"], split["crowds"]) == (4, 5, 0)
        assert (split["weighted"], split["weight_0"]) == (0, 0)
        assert split["classes"] == {"train": 2, "kite": 1, "zebra": 2}  # in the order of their ids
        assert split["image_sides"] == [36, 50, 70]
        assert split["boxes_per_image"] == [1, 1.25, 2]
        assert split["box_sides"] == [10, 24.49, 48.99]
        assert split["box_aspects"] == [0.67, 1, 1.5]
        assert split["box_sizes"] == {"small": 0.8, "medium": 0.2, "large": 0}
        assert split["problems"] == {}


def test_people_are_told_the_same(tiny, call, tmp_path):
    tiny.content["categories"][0]["name"] = "[red]zebra[/red]"
    tiny.write()
    code, printed, error = call(command, "check", tiny.root, "--out", tmp_path / "sheets")
    assert (code, error) == (0, "")
    assert "4 images, 5 boxes (80% small, 20% medium, 0% large), 0 of them crowd" in printed
    assert "[red]zebra[/red]" in printed
    assert printed.count("no problems found") == 2
    assert "weight" not in printed
    for split in ("train2017", "val2017"):
        assert f"samples: {tmp_path / 'sheets' / split}.png" in printed
        assert (tmp_path / "sheets" / f"{split}.png").stat().st_size > 10_000
    assert call(command, "check", tiny.root, "--out", tmp_path / "more", "--quiet") == (0, "", "")


def test_boxes_with_a_weight_are_counted_in_the_split_to_train_on(tiny, check, call, tmp_path):
    for annotation, weight in zip(tiny.content["annotations"], (0, 0.5, 1, 0)):
        annotation["weight"] = weight
    tiny.add(bbox=[1, 1, 0.5, 20], weight=7)  # not used
    tiny.write()
    code, result, _ = check(tiny.root)
    assert code == 0
    assert [(split["weighted"], split["weight_0"]) for split in result["splits"]] == [(3, 2), (0, 0)]
    _, printed, _ = call(command, "check", tiny.root, "--out", tmp_path / "more")
    assert printed.count("3 boxes have a weight other than 1, 2 of them 0\n") == 1


# --- problems that a training survives


def test_every_problem_is_counted_and_named(tiny, check):
    tiny.add(bbox=[700, 1, 9, 9])  # 105
    tiny.add(bbox=[-5, -5, 30, 30])
    tiny.add(bbox=[1, 1, 3, 20])
    tiny.add(bbox=[1, 1, 0.5, 20])
    tiny.add(bbox=[1, 1, 0, 20])
    tiny.add(bbox=[1, 1, float("nan"), 20])  # 110
    tiny.add(bbox=[1, 1, 10**400, 20])
    tiny.add(bbox=[1, 1, 9])
    tiny.add(bbox=[1, 1, 9, 9], category_id=99)
    tiny.add(bbox=[1, 1, 9, 9], category_id=[7])
    tiny.add(bbox=[1, 1, 9, 9], image_id=404)  # 115
    tiny.add(bbox=[1, 1, 9, 9], image_id=[11])
    tiny.add(bbox=[4, 6, 20, 30], category_id=33)
    tiny.add(bbox=[1, 1, 30, 30], iscrowd=1)
    tiny.add(bbox=[1, 1, 31, 30], area=0)
    tiny.content["categories"] += [{"id": 3, "name": "unicorn"}]
    tiny.content["images"] += [
        {"id": 30, "file_name": "gone.jpg", "width": 64, "height": 48},
        {"id": 31, "file_name": "text.jpg", "width": 64, "height": 48},
        {"id": 32, "file_name": "turned.jpg", "width": 64, "height": 48},
        {"id": 33, "file_name": "wide.jpg", "width": 64, "height": 48},
        {"id": 34, "file_name": "little.jpg", "width": 40, "height": 30},
    ]
    for image_id in (30, 31, 32, 34):
        tiny.add(bbox=[1, 1, 20, 20], image_id=image_id)
    tiny.write()
    tiny.image_path("train", "gone.jpg").unlink()
    tiny.image_path("train", "text.jpg").write_text("no image")
    tiny.draw(tiny.image_path("train", "turned.jpg"), 48, 64)

    code, result, _ = check(tiny.root)
    assert (code, result["usable"]) == (0, True)
    folder, wide = tiny.root / "train2017", "of image 11 (wide.jpg)"
    assert kinds(result) == {
        "box outside the image, annotation skipped": (1, [f"annotation 105 {wide}"]),
        "box reaches over the border of its image, clipped": (1, [f"annotation 106 {wide}"]),
        "tiny box, a side under 4 pixels, hard to learn": (1, [f"annotation 107 {wide}"]),
        "box without area or under 1 pixel, not used as a target": (
            2,
            [f"annotation {n} {wide}" for n in (108, 109)],
        ),
        "area of 0 though the box has one, that of the box is used": (1, [f"annotation 119 {wide}"]),
        "crowd region, not learned: trained as background": (1, [f"annotation 118 {wide}"]),
        "box is not four finite numbers, annotation skipped": (3, [f"annotation {n} {wide}" for n in (110, 111, 112)]),
        "unknown category, annotation skipped": (
            2,
            [f"category 99 in annotation 113 {wide}", f"category [7] in annotation 114 {wide}"],
        ),
        "unknown image, annotation skipped": (2, ["annotation 115 of image 404", "annotation 116 of image [11]"]),
        "the same box of the same category twice": (1, [f"annotation 117 {wide}"]),
        "category without a box": (1, ["unicorn"]),
        "image file missing, image skipped": (1, [f"{folder}/gone.jpg"]),
        "image file that cannot be used, replaced by another in training": (
            1,
            [f"{folder}/text.jpg: cannot be identified as an image"],
        ),
        "image of another size than annotated, replaced by another in training": (
            1,
            [f"{folder}/turned.jpg: is 48x64 when upright, its annotations say 64x48"],
        ),
        "file of several images": (1, ["wide.jpg (2)"]),
        "image without an annotation, not trained on (data.background = true trains on it as background)": (
            1,
            ["wide.jpg"],
        ),
        "image with a side under 32 pixels, not trained on": (1, ["little.jpg"]),
    }
    split = result["splits"][0]
    assert (split["boxes"], split["crowds"]) == (5 + 5 + 4, 1)
    assert split["box_sides"][2] == 48.99  # the part outside the image does not count


def test_many_problems_of_a_kind_are_counted_and_the_first_named(tiny, call, tmp_path):
    for _ in range(50):
        tiny.add(bbox=[700, 1, 9, 9])
    tiny.write()
    _, printed, _ = call(command, "check", tiny.root, "--out", tmp_path / "sheets")
    assert "50 x box outside the image, annotation skipped: annotation 105 of image 11 (wide.jpg), " in printed
    assert " and 47 more\n" in printed


# --- problems that stop a training


def test_a_bad_weight_makes_a_set_unusable(tiny, check):
    tiny.content["annotations"][0]["weight"] = float("nan")
    tiny.write()
    code, result, error = check(tiny.root)
    assert (code, result["usable"], result["command"]) == (2, False, None)
    assert [len(split["fatal"]) for split in result["splits"]] == [1, 0]
    assert f"{tiny.json_path('train')}: annotation 1 of image 11 (wide.jpg) has the weight nan; a weight is " in error


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("images", {"id": 11}, "two entries of images have the id 11"),
        ("annotations", {"id": 2}, "two entries of annotations have the id 2"),
        ("categories", {"id": 7}, "two entries of categories have the id 7"),
        ("categories", {"name": "train"}, "two categories have the name 'train'"),
        ("images", {"file_name": 7}, "image 20: file_name must be a string"),
    ],
)
def test_duplicate_ids_and_their_like_make_a_set_unusable(tiny, check, section, change, message):
    tiny.write()
    tiny.content[section][-1].update(change)
    tiny.write_json("train", json.dumps(tiny.content))
    code, result, error = check(tiny.root)
    assert (code, result["usable"], result["command"]) == (2, False, None)
    assert message in result["splits"][0]["fatal"][0]
    assert f"{tiny.root} cannot be trained on as it is: " in error
    assert message in error
    assert result["splits"][1]["images"] == 4  # the other split is looked through all the same
    assert {path.name for path in (tiny.root.parent / "sheets").iterdir()} == {"problems.txt", "val2017.png"}


def test_all_reasons_are_shown_and_too_many_are_counted(tiny, call, tmp_path):
    tiny.content["annotations"] += [tiny.content["annotations"][0]] * 30
    tiny.write()
    code, printed, error = call(command, "check", tiny.root, "--out", tmp_path / "sheets")
    assert code == 2
    assert printed.count("cannot be trained on: two entries of annotations have the id 1") == 2 * 10
    assert "and 20 more" in printed
    assert "(and 59 more)" in error
    assert call(command, "check", tiny.root, "--out", tmp_path / "sheets", "--quiet") == (2, "", error)


def test_a_truncated_file_makes_a_set_unusable(tiny, check):
    tiny.write()
    tiny.write_json("val", tiny.json_path("val").read_text()[:100])
    code, result, error = check(tiny.root)
    assert (code, result["usable"]) == (2, False)
    assert "instances_val2017.json is not valid JSON" in error


def test_images_that_are_nowhere_make_a_set_unusable(tiny, check):
    tiny.write()
    for image in tiny.content["images"]:
        tiny.image_path("train", image["file_name"]).unlink()
        tiny.image_path("val", image["file_name"]).unlink()
    code, _, error = check(tiny.root)
    assert code == 2
    assert "none of the images of" in error


def test_validation_needs_no_usable_box_as_in_training(tiny, check):
    cfg = tiny.write()
    for annotation in tiny.content["annotations"]:
        annotation["bbox"][2] = 0.5
    tiny.write_json("val", json.dumps(tiny.content))
    code, result, error = check(tiny.root)
    assert (code, result["usable"], error) == (0, True, "")
    assert kinds(result, 1)["box without area or under 1 pixel, not used as a target"][0] == 5
    assert not any("not trained on" in kind for kind in kinds(result, 1))
    assert result["splits"][1]["box_sizes"] == {"small": 0, "medium": 0, "large": 0}
    train, val = prepare_data(Config(data=cfg, head={"num_classes": 3}))
    assert (len(train), len(val)) == (4, 4)


def test_files_that_cannot_be_used_have_another_fate_in_validation(tiny, check):
    tiny.content["images"].append({"id": 30, "file_name": "tall_two.jpg", "width": 40, "height": 60})
    tiny.add(image_id=30, bbox=[1, 1, 30, 30])
    tiny.write()
    for name in ("train", "val"):
        tiny.image_path(name, "tall.jpg").write_text("no image")
        tiny.draw(tiny.image_path(name, "square.jpg"), 30, 50)
        tiny.image_path(name, "wide_two.jpg").unlink()
    _, result, _ = check(tiny.root)
    assert list(kinds(result, 0)) == [
        "image file missing, image skipped",
        "image file that cannot be used, replaced by another in training",
        "image of another size than annotated, replaced by another in training",
    ]
    assert list(kinds(result, 1)) == [
        "image file missing, image skipped, but its ground truth still counts",
        "image file that cannot be used, but its ground truth still counts",
        "image of another size than annotated, but its ground truth still counts",
    ]


def test_splits_of_different_categories_make_a_set_unusable(tiny, check):
    tiny.write()
    tiny.content["categories"][0]["name"] = "horse"
    tiny.write_json("val", json.dumps(tiny.content))
    code, result, error = check(tiny.root)
    assert (code, result["usable"]) == (2, False)
    assert "train2017 and val2017 have different categories: 90 horse, 90 zebra in one of them alone" in error


def test_folders_without_coco_data_are_one_clear_error(tmp_path, call):
    (tmp_path / "set").mkdir()
    for where, message in (("nowhere", "nowhere does not exist"), ("set", "set has no COCO detection JSON")):
        code, _, error = call(command, "check", tmp_path / where, "--out", tmp_path / "sheets")
        assert (code, message in error) == (2, True)
    (tmp_path / "set" / "results.json").write_text("[]")
    code, _, error = call(command, "check", tmp_path / "set")
    assert (code, "results.json is not COCO detection JSON: it holds a list" in error) == (2, True)
    assert not (tmp_path / "sheets").exists()


def test_sheets_are_not_overwritten_without_force(tiny, check):
    tiny.write()
    sheets = tiny.root.parent / "sheets"
    sheets.mkdir()
    (sheets / "val2017.png").write_text("mine")
    code, _, error = check(tiny.root)
    assert (code, "val2017.png already exists: add --force" in error) == (2, True)
    assert [path.read_text() for path in sheets.iterdir()] == ["mine"]
    assert check(tiny.root, "--force")[0] == 0
    with Image.open(sheets / "val2017.png") as sheet:
        assert sheet.format == "PNG"


# --- layouts and the suggested command

LAYOUTS = {  # (annotations, folder of images, prefix of file names) of each split
    "coco": [(f"annotations/instances_{s}2017.json", f"{s}2017", "") for s in ("train", "val")],
    "one image folder": [(f"annotations/{s}.json", "images", "") for s in ("train", "val")],
    "folders in images": [(f"annotations/{s}.json", f"images/{s}", "") for s in ("train", "val")],
    "roboflow": [(f"{s}/_annotations.coco.json", s, "") for s in ("test", "train", "valid")],
    "one file": [("labels.json", "data", "")],
    "names with folders": [("result.json", "images", "images/")],
    "names that look like numbers": [(f"{n}.json", n, "") for n in ("2016", "2017")],
    "names to be quoted": [(f"my {s}.json", f"{s} 'images'", "") for s in ("train", "val")],
    "test alone beside train": [(f"annotations/{s}.json", s, "") for s in ("test", "train")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_suggested_command_trains_on_what_was_found(tiny, tmp_path, layout):
    root = tmp_path / "my data; $HOME"
    for annotations, folder, prefix in LAYOUTS[layout]:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / annotations).parent.mkdir(parents=True, exist_ok=True)
        images = [{**image, "file_name": prefix + image["file_name"]} for image in tiny.content["images"]]
        (root / annotations).write_text(json.dumps(tiny.content | {"images": images}))
        for image in tiny.content["images"]:
            tiny.draw(root / folder / image["file_name"], image["width"], image["height"])
    splits, others = find_splits(root)
    assert others == []
    chosen = choose_splits(splits)
    words = shlex.split(training_command(*chosen, root))
    assert words[:3] == ["python", "-m", "dwtriton.train"]
    cfg = train_command.read_config(train_command.build_parser().parse_args(words[3:]))
    train, val = prepare_data(cfg)
    assert (len(train), len(val)) == (4, 4)
    files = {annotations: "." if prefix else folder for annotations, folder, prefix in LAYOUTS[layout]}
    found = {cfg.data.train_annotations: cfg.data.train_images, cfg.data.val_annotations: cfg.data.val_images}
    assert found.items() <= files.items()
    assert len(found) == min(2, len(files))
    if any("train" in name for name in files):
        assert "train" in cfg.data.train_annotations
        assert "train" not in cfg.data.val_annotations


def test_a_single_split_is_both_and_said_to_be(tiny, tmp_path, call):
    tiny.write()
    tiny.json_path("val").unlink()
    code, printed, _ = call(command, "check", tiny.root, "--out", tmp_path / "sheets")
    assert code == 0
    assert "there is one split: a run would be measured on the images that it learns from" in printed
    assert "--set data.val_images=train2017" in printed.splitlines()[-1]


def test_other_json_files_are_ignored_and_reported(tiny):
    tiny.write()
    tiny.json_path("train").with_name("captions.json").write_text("{}")
    tiny.json_path("train").with_name("panoptic.json").write_text(
        '{"images": [], "annotations": [{"image_id": 1, "segments_info": []}], "categories": []}'
    )
    splits, others = find_splits(tiny.root)
    assert len(splits) == 2
    assert "captions.json is not COCO detection JSON: it has no list" in others[0]
    assert "panoptic.json is not COCO detection JSON: none of its annotations has a 'bbox'" in others[1]
    (tiny.root / "annotations").rename(tiny.root / "inside")
    (tiny.root / "index.json").write_text("[]")
    splits, others = find_splits(tiny.root)
    assert [split.records.path.parent.name for split in splits] == ["inside", "inside"]
    assert "index.json" in others[0]


def test_settings_that_are_defaults_are_not_suggested(tiny):
    tiny.write()
    splits, others = find_splits(tiny.root)
    assert others == []
    fitting = "--set data.batch_size=4 --set schedule.epochs=100 --set schedule.warmup_iterations=10"
    assert training_command(*splits, tiny.root) == (
        f"python -m dwtriton.train --cfg small --data {tiny.root} {fitting} --set head.num_classes=3"
    )


def test_the_suggested_config_fits_the_machine_and_the_size_of_the_data():
    """On a GPU it is the recipe, as it stands for data as large as COCO."""
    assert fit_to_data(118_000, on_gpu=True) == ("r50_1x", [])
    assert fit_to_data(118_000, on_gpu=False) == ("small", [])
    config, settings = fit_to_data(120, on_gpu=True)
    assert (config, settings[0]) == ("r50_1x", "data.batch_size=8")
    for images in (1, 5, 30, 120, 700, 3000, 20_000):
        for on_gpu in (False, True):
            cfg = load_config(*fit_to_data(images, on_gpu))
            iterations = cfg.schedule.epochs * -(-images // cfg.data.batch_size)
            assert cfg.schedule.warmup_iterations <= iterations / 10
            assert check_warmup(cfg.schedule, iterations) is None
            assert cfg.schedule.epochs == 100 or iterations >= 600
            assert on_gpu or cfg.backbone.weights == "none"
            assert all(milestone < cfg.schedule.epochs for milestone in cfg.schedule.milestones) or not on_gpu


def test_the_printed_command_fits_the_images_that_are_trained_on(tiny, call, monkeypatch):
    """One in forty has boxes so far: a warm-up made for all would be longer than the run."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    blank = [{"id": 1000 + n, "file_name": f"blank{n}.jpg", "width": 64, "height": 48} for n in range(160)]
    tiny.write()
    for image in blank:
        (tiny.root / "train2017" / image["file_name"]).write_bytes((tiny.root / "train2017" / "wide.jpg").read_bytes())
    path = tiny.root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"images": content["images"] + blank}))
    for background in ("false", "true"):
        options = "--set", f"data.background={background}"
        _, out, _ = call(command, "check", tiny.root, "--out", tiny.root / "check", "--json", *options)
        words = shlex.split(json.loads(out)["command"])
        cfg = train_command.read_config(train_command.build_parser().parse_args(words[3:]))
        train, _ = prepare_data(cfg)
        assert len(train) == (164 if background == "true" else 4)
        assert check_warmup(cfg.schedule, cfg.schedule.epochs * -(-len(train) // cfg.data.batch_size)) is None


def test_splits_with_images_of_the_same_names_keep_their_own_folders(tiny):
    """Found by the name of the folder, as the names of the files do not tell."""
    tiny.write()
    splits, _ = find_splits(tiny.root)
    assert [split.images.name for split in splits] == ["train2017", "val2017"]


# --- pictures


def sheet_of(root, console):
    """The sheet of the first split."""
    split = find_splits(root)[0][0]
    return draw_sheet(check_split(split, console))


def coloured(figure, colour):
    """Pixels of the figure that have a colour of the boxes."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(pixels - rgb).max(-1) < 12).sum()


def test_the_sheet_shows_images_spread_over_the_split_with_their_boxes(tiny, console):
    tiny.content["images"] = [
        {"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48} for number in range(1, 31)
    ]
    tiny.content["annotations"] = [
        {"id": n, "image_id": n, "category_id": 7, "bbox": [5, 5, 40, 30], "iscrowd": n % 2} for n in range(1, 31)
    ]
    tiny.write()
    tiny.image_path("train", "30.jpg").write_text("no image")
    figure = sheet_of(tiny.root, console)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 12
    assert (titles[0], titles[-1]) == ("1.jpg: 1 box", "30.jpg: 1 box")
    assert [text.get_text() for text in figure.axes[-1].texts] == ["cannot be read"]
    assert all(axes.images for axes in figure.axes[:-1])
    assert coloured(figure, COLOURS[0]) > 1000


def test_a_sheet_of_one_image_with_many_boxes_and_long_names(tiny, console):
    tiny.content["images"] = tiny.content["images"][:1]
    tiny.content["categories"][0]["name"] = "a name that is longer than any box is wide " * 3
    tiny.content["annotations"] = [
        {"id": n, "image_id": 11, "category_id": 90, "bbox": [n % 30, n % 20, 20, 20]} for n in range(1, 200)
    ]
    tiny.write()
    figure = sheet_of(tiny.root, console)
    assert [axes.get_title() for axes in figure.axes] == ["wide.jpg: 199 boxes"]
    assert coloured(figure, COLOURS[2]) > 500


# --- the sizes of image files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_of_files_are_those_of_decoded_images(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "image", kind, **({} if kind == "GIF" else {"exif": exif}))
    width, height = upright_size(tmp_path / "image")
    assert read_image(tmp_path / "image").shape == (3, height, width)


def test_files_that_cannot_be_decoded_have_no_size(tmp_path):
    path = tmp_path / "image.jpg"
    frames = [Image.new("L", (40, 40), value) for value in (0, 200)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(BrokenImageError, match=r"image.jpg: has 2 frames"):
        upright_size(path)
    frames[0].save(path, "PPM")
    with pytest.raises(BrokenImageError, match=r"image.jpg: is a PPM file"):
        upright_size(path)
    for content in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(BrokenImageError, match=r"image.jpg: "):
            upright_size(path)
    with pytest.raises(BrokenImageError, match=r"nowhere: No such file"):
        upright_size(tmp_path / "nowhere")


def test_progress_goes_to_standard_error_alone(tiny, call, check, monkeypatch, tmp_path):
    monkeypatch.setattr("dwtriton.console.progress.SECONDS_BETWEEN_LINES", 0.0)
    tiny.write()
    _, printed, error = call(command, "check", tiny.root, "--out", tmp_path / "sheets")
    assert "decoding images of val2017  4/4" in error
    assert "decoding" not in printed
    assert check(tiny.root, "--force")[2] == ""


def test_each_image_is_decoded_once_and_one_more_time_to_find_a_usable_one(tiny, monkeypatch, console):
    """Time grows with the number of images alone: one of each orientation is read before the others are looked at."""
    opened = []

    def fake(content, *_, **__):
        opened.append(content.numpy().tobytes())
        with Image.open(io.BytesIO(opened[-1])) as image:
            return torch.zeros(3, image.height, image.width, dtype=torch.uint8)

    monkeypatch.setattr("dwtriton.data.images.decode_bytes", fake)
    tiny.write()
    check_split(find_splits(tiny.root)[0][0], console)
    files = [tiny.image_path("train", image["file_name"]).read_bytes() for image in tiny.content["images"]]
    assert set(opened) == set(files)
    assert len(opened) == len(files) + 2
