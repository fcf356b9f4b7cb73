"""`python -m dwtriton.predict`: what is found, drawn and written, and what bad input gets."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from dwtriton.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dwtriton.data.images import read_image
from dwtriton.evaluate import __main__ as evaluate_command
from dwtriton.predict import __main__ as command
from dwtriton.predict import predictor
from dwtriton.predict.video import Video, write_video
from tests.support.videos import flat, make_video, noise

LEAST = 0.02  # a score that some of what the tiny run finds has


@pytest.fixture
def predict(finished, tmp_path, call):
    """Run the command on inputs with the tiny run; returns (exit code, output, error, detections.json or None)."""

    def run(*arguments, weights=finished[0] / "last.pt", out=tmp_path / "out"):
        code, printed, error = call(
            command, "--weights", weights, "--out", out, "--threshold", LEAST, *map(str, arguments)
        )
        file = out / "detections.json"
        return code, printed, error, json.loads(file.read_text()) if file.exists() else None

    return run


@pytest.fixture
def images(shapes_root, finished, tmp_path):
    """Validation images of the tiny run as PNG, by name."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((shapes_root / "val").glob("*.jpg"))[:3]:
        Image.open(path).save(folder / f"{path.stem}.png")
    return {path.name: path for path in sorted(folder.iterdir())}


def found_in(content, name, frame=None):
    """What was found in a file or in one frame of it, best first, without ids."""
    (picture,) = [
        p for p in content["images"] if Path(p["file_name"]).name == name and p.get("frame_id") in (None, frame)
    ]
    of_image = [a for a in content["annotations"] if a["image_id"] == picture["id"]]
    return [(a["category_id"], a["score"], a["bbox"]) for a in of_image]


def test_it_finds_what_evaluate_finds(finished, shapes_root, tmp_path, call, predict):
    weights = finished[0] / "last.pt"
    one = ["--set", "data.batch_size=1"]  # rounding may depend on how many images are in a batch
    assert call(evaluate_command, "--weights", weights, "--out", tmp_path / "evaluation", *one)[0] == 0
    results = json.loads((tmp_path / "evaluation" / "detections.json").read_text())
    code, _, _, content = predict(shapes_root / "val", "--no-pictures", "--batch", 1)
    assert code == 0
    truth = json.loads((shapes_root / "annotations" / "val.json").read_text())
    assert len(content["images"]) == len(truth["images"])
    assert len(content["annotations"]) > 20
    for image in truth["images"]:
        expected = [r for r in results if r["image_id"] == image["id"] and r["score"] > LEAST]
        name = Path(image["file_name"]).name
        assert found_in(content, name) == [(r["category_id"], r["score"], r["bbox"]) for r in expected]
    sizes = {Path(i["file_name"]).name: (i["height"], i["width"]) for i in truth["images"]}
    assert {Path(i["file_name"]).name: (i["height"], i["width"]) for i in content["images"]} == sizes


def test_what_is_found_does_not_depend_on_the_batch(shapes_root, tmp_path, predict):
    _, _, _, alone = predict(shapes_root / "val", "--no-pictures", "--batch", 1)
    code, _, _, together = predict(shapes_root / "val", "--no-pictures", "--batch", 3, out=tmp_path / "together")
    assert code == 0
    assert alone["images"] == together["images"]  # in the order of the inputs, whatever sizes they have
    assert [a["id"] for a in together["annotations"]] == list(range(1, len(together["annotations"]) + 1))
    for image in alone["images"]:
        scores = [[a["score"] for a in c["annotations"] if a["image_id"] == image["id"]] for c in (alone, together)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_the_json_is_coco_ground_truth_and_results(finished, images, tmp_path, predict, capsys):
    code, printed, _, content = predict(*images.values())
    assert code == 0
    assert "3 images and 0 video frames" in printed
    coco = COCO(tmp_path / "out" / "detections.json")
    checkpoint = load_checkpoint(finished[0] / "last.pt")
    assert [c["name"] for c in coco.loadCats(checkpoint.category_ids)] == checkpoint.class_names
    assert len(coco.anns) == len(content["annotations"]) > 0
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] and a["score"] > LEAST for a in coco.anns.values())
    as_results = [{k: a[k] for k in ("image_id", "category_id", "bbox", "score")} for a in content["annotations"]]
    assert len(coco.loadRes(as_results).anns) == len(as_results)
    assert content["info"]["score_threshold"] == LEAST


def test_pictures_show_the_boxes_on_the_image(images, tmp_path, predict):
    _, _, _, content = predict(*images.values(), "--set", "inference.max_detections=1")
    for name, path in images.items():
        (picture,) = [p for p in content["images"] if p["file_name"] == str(path)]
        assert picture["drawn"] == f"{path.stem}.jpg"
        drawn = read_image(tmp_path / "out" / picture["drawn"])
        factor = drawn.shape[1] // picture["height"]  # small ones are enlarged
        plain = read_image(path).repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        assert drawn.shape == plain.shape
        changed = ((drawn.int() - plain.int()).abs() > 60).any(0)  # [H, W]; JPEG changes less
        ((_, _, (x, y, width, height)),) = found_in(content, name)
        text = round(y * factor) + 40  # rows above may have the text
        rows, columns = changed[text:].nonzero().T
        sides = [columns.min(), columns.max(), text + rows.max()]
        assert sides == pytest.approx([x * factor, (x + width) * factor, (y + height) * factor], abs=4)


def test_a_turned_photo_is_found_and_drawn_upright(images, tmp_path, predict):
    name, path = next(iter(images.items()))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    _, _, _, content = predict(path, tmp_path / "turned.png")
    assert found_in(content, name) == found_in(content, "turned.png")
    upright, turned = (read_image(tmp_path / "out" / p["drawn"]) for p in content["images"])
    assert torch.equal(upright, turned)


def test_images_of_every_kind(images, tmp_path, predict):
    image = Image.open(next(iter(images.values()))).convert("RGB")
    kinds = tmp_path / "kinds"
    kinds.mkdir()
    image.convert("L").save(kinds / "grey.png")
    image.convert("RGBA").save(kinds / "transparent.png")
    image.convert("P").save(kinds / "palette.gif")
    image.convert("CMYK").save(kinds / "print.jpg")
    for suffix in ("bmp", "tif"):
        image.save(kinds / f"{suffix}.{suffix}")
    Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257).save(kinds / "deep.png")
    code, _, _, content = predict(kinds)
    assert code == 0
    assert content["info"]["skipped"] == []
    assert {p["drawn"] for p in content["images"]} == {f"{p.stem}.jpg" for p in kinds.iterdir()}
    assert found_in(content, "grey.png") == found_in(content, "deep.png")


def test_12_bits_in_16_are_named_and_images_of_too_many_pixels_skipped(images, tmp_path, predict):
    good = next(iter(images.values()))
    Image.fromarray(np.linspace(0, 4095, 64 * 96).astype(np.uint16).reshape(64, 96)).save(tmp_path / "dark.png")
    Image.new("RGB", (640, 480)).save(tmp_path / "large.png")
    inputs = good, tmp_path / "dark.png", tmp_path / "large.png"
    code, printed, _, content = predict(*inputs, "--set", "data.max_pixels=100000")
    assert code == 0
    assert f"doubtful: {tmp_path / 'dark.png'}: an image of 16 bits that uses 12 at most, nearly black" in printed
    assert f"skipped: {tmp_path / 'large.png'}: has 640x480 pixels, more than data.max_pixels = 100000" in printed
    assert [p["file_name"] for p in content["images"]] == [str(good), str(tmp_path / "dark.png")]


def test_an_image_too_large_for_jpeg_is_not_drawn(images, tmp_path, predict, monkeypatch):
    monkeypatch.setattr(predictor, "MAX_JPEG_SIDE", 1000)
    Image.new("RGB", (1001, 40)).save(tmp_path / "wide.png")
    good = next(iter(images.values()))
    code, printed, _, content = predict(tmp_path / "wide.png", good)
    assert code == 0
    assert f"not drawn, a side has more than 1000 pixels: {tmp_path / 'wide.png'}" in printed
    assert [picture.get("drawn") for picture in content["images"]] == [None, f"{good.stem}.jpg"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"detections.json", f"{good.stem}.jpg"}


def test_what_cannot_be_read_is_named_skipped_and_counted(images, tmp_path, predict):
    good = next(iter(images.values()))
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:500])
    (tmp_path / "note.jpg").write_text("no image")
    code, printed, _, content = predict(tmp_path / "cut.png", good, tmp_path / "note.jpg")
    assert code == 0
    assert f"skipped: {tmp_path / 'cut.png'}: " in printed
    assert f"skipped: {tmp_path / 'note.jpg'}: " in printed
    assert "2 files skipped" in printed
    assert [p["file_name"] for p in content["images"]] == [str(good)]
    assert len(content["info"]["skipped"]) == 2
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"detections.json", f"{good.stem}.jpg"}


def test_nothing_but_unreadable_files_is_an_error(tmp_path, predict):
    (tmp_path / "note.jpg").write_text("no image")
    (tmp_path / "note.mp4").write_text("no video")
    code, _, error, content = predict(tmp_path / "note.jpg", tmp_path / "note.mp4", "--quiet")
    assert (code, content) == (2, None)
    assert f"none of 2 files could be used; the first: {tmp_path / 'note.jpg'}" in error


def test_nothing_is_overwritten_without_force(images, tmp_path, predict):
    path = next(iter(images.values()))
    assert predict(path)[0] == 0
    before = (tmp_path / "out" / "detections.json").stat().st_mtime_ns
    code, _, error, _ = predict(path)
    assert (code, "add --force" in error) == (2, True)
    assert (tmp_path / "out" / "detections.json").stat().st_mtime_ns == before
    assert predict(path, "--force")[0] == 0
    pixels = path.read_bytes()
    code, _, error, _ = predict(path, "--force", out=path.parent)
    assert (code, f"{path} lies in --out" in error) == (2, True)
    assert path.read_bytes() == pixels
    assert not (path.parent / "detections.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jpg"], "absent.jpg does not exist"),
        (["absent/*.jpg"], "absent/*.jpg does not exist, and as a pattern it matches nothing"),
        (["empty"], "there is no image or video in empty"),
        (["note.jpg", "--threshold", "1.5"], "--threshold is a score from 0 to 1"),
        (["note.jpg", "--batch", "0"], "--batch must be at least 1"),
        (["note.jpg", "--weights", "absent.pt"], "absent.pt does not exist"),
        (["note.jpg", "--set", "inference.nms=1"], "unknown key 'inference.nms'"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, message, finished, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.jpg").touch()
    code, _, error = call(command, "--weights", finished[0] / "last.pt", *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "predictions").exists()


def test_a_checkpoint_without_class_names_shows_ids_and_says_so(finished, images, tmp_path, predict):
    checkpoint = load_checkpoint(finished[0] / "last.pt")
    save_checkpoint(tmp_path / "nameless.pt", checkpoint._replace(class_names=[]))
    code, printed, _, content = predict(*images.values(), weights=tmp_path / "nameless.pt")
    assert code == 0
    assert "nameless.pt has no class names; category ids are shown" in printed
    assert [c["name"] for c in content["categories"]] == [str(id_) for id_ in checkpoint.category_ids]
    assert (tmp_path / "out" / content["images"][0]["drawn"]).exists()


def test_output_for_scripts(images, tmp_path, predict):
    code, printed, _, content = predict(*images.values(), "--no-pictures", "--json")
    assert code == 0
    assert json.loads(printed) == {
        "out": str(tmp_path / "out"),
        "images": 3,
        "frames": 0,
        "detections": len(content["annotations"]),
        "skipped": [],
        "incomplete": [],
        "doubtful": [],
    }
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["detections.json"]
    assert "drawn" not in content["images"][0]
    assert predict(*images.values(), "--quiet", out=tmp_path / "quiet")[1] == ""


def test_images_in_tiles_have_boxes_in_their_own_pixels_and_pictures(images, tmp_path, predict):
    """One tile is the whole image; with smaller ones the detector sees objects larger, and finds others."""
    _, _, _, whole = predict(*images.values(), "--batch", 1, out=tmp_path / "whole")
    code, _, _, one = predict(*images.values(), "--tile", 500, out=tmp_path / "one")
    assert (code, one["annotations"]) == (0, whole["annotations"])
    code, _, _, content = predict(*images.values(), "--tile", 100, "--overlap", 0.3, out=tmp_path / "tiles")
    assert code == 0
    assert [(p["id"], p["height"], p["width"]) for p in content["images"]] == [
        (p["id"], p["height"], p["width"]) for p in whole["images"]
    ]
    assert content["annotations"] != whole["annotations"]
    sizes = {p["id"]: (p["width"], p["height"]) for p in content["images"]}
    for annotation in content["annotations"]:
        (x, y, w, h), (width, height) = annotation["bbox"], sizes[annotation["image_id"]]
        assert min(x, y) >= -1e-3
        assert (x + w, y + h) <= (width + 1e-2, height + 1e-2)
    assert all((tmp_path / "tiles" / p["drawn"]).exists() for p in content["images"])


def test_unreadable_images_are_skipped_in_tiles_too(images, tmp_path, predict):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    code, _, _, content = predict(next(iter(images.values())), tmp_path / "broken.jpg", "--tile", 100)
    assert (code, len(content["images"])) == (0, 1)
    assert "broken.jpg" in content["info"]["skipped"][0]


@pytest.mark.parametrize("arguments", [["--tile", 8], ["--tile", 64, "--overlap", 1]])
def test_tiles_that_make_no_sense_are_an_error(arguments, images, predict):
    code, _, error, _ = predict(*images.values(), *arguments)
    assert code == 2
    assert error.startswith(("error: --tile is at least 32", "error: --overlap is a share"))


def test_a_threshold_of_one_finds_nothing_and_still_draws(images, tmp_path, predict):
    code, _, _, content = predict(*images.values(), "--threshold", 1)
    assert (code, content["annotations"]) == (0, [])
    assert all((tmp_path / "out" / p["drawn"]).exists() for p in content["images"])


def test_an_interrupted_run_keeps_what_was_found(images, tmp_path, predict, monkeypatch):
    add = predictor.Predictor._add

    def interrupted(self, image_id, *rest, **more):
        if image_id == 3:
            raise KeyboardInterrupt
        add(self, image_id, *rest, **more)

    monkeypatch.setattr(predictor.Predictor, "_add", interrupted)
    code, printed, _, content = predict(*images.values(), "--batch", 1)
    assert code == 130
    assert "interrupted" in printed
    assert [p["id"] for p in content["images"]] == [1, 2]


def test_frames_of_a_video_are_found_like_images_and_written_in_order(tmp_path, predict):
    path = make_video(tmp_path / "street.mov", [noise(seed) for seed in range(5)])
    with Video(path) as video:
        assert (video.rate, video.length) == (5, 5)
        for number, frame in enumerate(video.frames()):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    code, printed, _, content = predict(tmp_path / "*.png", path, "--batch", 2)
    assert code == 0
    assert "5 images and 5 video frames" in printed
    assert [p["id"] for p in content["images"]] == list(range(1, 11))
    assert [p.get("frame_id") for p in content["images"]] == [None] * 5 + list(range(5))
    for number in range(5):
        still, moving = (found_in(content, name, number) for name in (f"{number}.png", "street.mov"))
        assert len(still) > 0
        assert [score for _, score, _ in still] == pytest.approx([score for _, score, _ in moving], rel=1e-4)
    with Video(tmp_path / "out" / "street.mp4") as video:
        assert video.rate == 5
        drawn = list(video.frames())
    assert len(drawn) == 5
    stills = [read_image(tmp_path / "out" / f"{number}.jpg").float() for number in range(5)]
    nearest = [min(range(5), key=lambda n: (stills[n] - frame.float()).abs().mean()) for frame in drawn]
    assert nearest == list(range(5))


def test_frames_do_not_pile_up(tmp_path, predict, monkeypatch):
    path = make_video(tmp_path / "long.mp4", [flat(level) for level in range(0, 240, 10)])
    held = []

    def spying_write(file, frames, rate):
        def spied():
            for written, frame in enumerate(frames):
                held.append(opened[0].read - written)
                yield frame

        write_video(file, spied(), rate)

    class SpiedVideo(Video):
        def __init__(self, path):
            super().__init__(path)
            opened.append(self)

    opened = []
    monkeypatch.setattr(predictor, "Video", SpiedVideo)
    monkeypatch.setattr(predictor, "write_video", spying_write)
    code, _, _, content = predict(path, "--batch", 4)
    assert (code, len(content["images"]), len(held)) == (0, 24, 24)
    assert max(held) <= 4


def test_a_video_that_breaks_off_keeps_what_was_read(tmp_path, predict):
    whole = make_video(tmp_path / "whole.mp4", [noise(seed) for seed in range(12)])
    content = whole.read_bytes()
    cut, dead = tmp_path / "cut.mp4", tmp_path / "dead.mp4"
    cut.write_bytes(content[: len(content) * 6 // 10])
    dead.write_bytes(content[:200])
    code, printed, _, content = predict(cut, dead)
    assert code == 0
    frames = [p["frame_id"] for p in content["images"]]
    assert 3 <= len(frames) < 12
    assert frames == list(range(len(frames)))
    assert f"incomplete: {cut}: ends after {len(frames)} of 12 frames" in printed
    assert f"skipped: {dead}: " in printed
    assert "1 files skipped" in printed
    with Video(tmp_path / "out" / "cut.mp4") as video:
        assert len(list(video.frames())) == len(frames)
    assert not (tmp_path / "out" / "dead.mp4").exists()


def test_videos_need_pyav_before_any_work(finished, images, tmp_path, predict, monkeypatch):
    (tmp_path / "street.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, error, _ = predict(*images.values(), tmp_path / "street.mp4")
    assert (code, "pip install 'dwtriton[video]'" in error) == (2, True)
    assert not (tmp_path / "out").exists()
    assert predict(*images.values())[0] == 0  # images do not


def test_help_has_examples(call):
    code, printed, _ = call(command, "--help")
    assert code == 0
    assert "examples:" in printed
    assert "exit codes:" in printed


def test_two_videos_of_one_name(tmp_path, predict):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        make_video(tmp_path / folder / "v.mp4", [flat(90)] * 3)
    _, _, _, content = predict(tmp_path / "a", tmp_path / "b")
    assert [picture["id"] for picture in content["images"]] == [1, 2, 3, 4, 5, 6]
    assert [picture["drawn"] for picture in content["images"]] == ["v.mp4"] * 3 + ["v-2.mp4"] * 3
    assert (tmp_path / "out" / "v-2.mp4").exists()


def test_other_formats_hold_the_same_detections(images, tmp_path, predict):
    code, printed, _, content = predict(*images.values(), "--no-pictures", "--format", "yolo", "--format", "csv")
    assert code == 0
    assert "labels" in printed
    lines = {path.stem: path.read_text().splitlines() for path in (tmp_path / "out" / "labels").iterdir()}
    assert len(lines.pop("classes")) == len(content["categories"])
    for name in images:
        assert len(lines[Path(name).stem]) == len(found_in(content, name))
    assert len((tmp_path / "out" / "detections.csv").read_text().splitlines()) == 1 + len(content["annotations"]) > 1
