"""The COCO file of `predict`: whole, in order, and written without keeping it in memory."""

import json
import tracemalloc
from types import SimpleNamespace

import pytest
import torch

from dwtriton.predict.predictor import Predictor
from dwtriton.predict.writer import DetectionsWriter


def annotation(image_id, number=0):
    return {"image_id": image_id, "category_id": 3, "bbox": [0.1, 1 / 3, 2.0, 1e-9], "score": 0.7 + number / 1000}


def test_the_file_is_what_json_makes_of_the_whole_in_the_order_of_ids(tmp_path):
    images = {n: {"id": n, "file_name": "ä.mp4" if n > 7 else f"{n}.jpg"} for n in (1, 2, 4, 5, 6, 8, 9)}
    images[8]["frame_id"], images[9]["frame_id"] = 0, 1
    found = {n: [annotation(n, k) for k in range(n % 3)] for n in images}
    with DetectionsWriter(tmp_path) as writer:
        for number in (2, 5, 1, 6, 4, 8, 9):
            writer.add(images[number], found[number])
        writer.set_drawn("5.jpg", "five.jpg")
        writer.set_drawn("ä.mp4", "a.mp4")
        assert (writer.images, writer.frames, writer.detections, writer.last_id) == (5, 2, 8, 9)
        for _ in range(2):
            writer.write(tmp_path / "detections.json", {"skipped": ["x"]}, [{"id": 3, "name": "kite"}])
    images[5]["drawn"], images[8]["drawn"], images[9]["drawn"] = "five.jpg", "a.mp4", "a.mp4"
    flat = [a for n in sorted(found) for a in found[n]]
    content = {
        "info": {"skipped": ["x"]},
        "images": [images[n] for n in sorted(images)],
        "annotations": [{"id": number, **a} for number, a in enumerate(flat, 1)],
        "categories": [{"id": 3, "name": "kite"}],
    }
    assert (tmp_path / "detections.json").read_text() == json.dumps(content)
    assert [path.name for path in tmp_path.iterdir()] == ["detections.json"]  # the temporary file is gone


def test_nothing_found_is_a_file_too(tmp_path):
    with DetectionsWriter(tmp_path) as writer:
        writer.add({"id": 1, "file_name": "a.jpg"}, [])
        writer.write(tmp_path / "detections.json", {}, [])
    content = json.loads((tmp_path / "detections.json").read_text())
    assert content == {"info": {}, "images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}


def test_memory_does_not_grow_with_the_frames_of_a_video(tmp_path, monkeypatch, console):
    """A long video through the predictor, as far as it goes without a network: every frame has ten detections."""

    class LongVideo:
        def __init__(self, path):
            self.path, self.read, self.length = path, 0, frames

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def frames(self):
            for _ in range(self.length):
                self.read += 1
                yield torch.zeros(3, 8, 8, dtype=torch.uint8)

    class Ready:
        class_names, category_ids, config = ["kite"], [3], None

        def detect(self, samples, batch_size):
            for sample in samples:
                found = {"boxes": torch.rand(10, 4), "scores": torch.rand(10)}
                yield sample, found | {"labels": torch.zeros(10, dtype=torch.int64)}

    monkeypatch.setattr("dwtriton.predict.predictor.Video", LongVideo)
    monkeypatch.setattr(
        "dwtriton.predict.predictor.unlabelled_sample",
        lambda frame, cfg, image_id, path: SimpleNamespace(image_id=image_id, path=path),
    )
    peaks = []
    for frames in (40, 40, 1000):  # the first warms up
        tracemalloc.start()
        with DetectionsWriter(tmp_path) as writer:
            predictor = Predictor(Ready(), writer, {}, 4, console)
            predictor.predict_video(tmp_path / "long.mp4")
            writer.write(tmp_path / "detections.json", {}, [])
            assert (writer.frames, writer.detections) == (frames, 10 * frames)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(json.loads((tmp_path / "detections.json").read_text())["annotations"]) == 10_000
    assert peaks[2] < peaks[1] + 200_000  # bytes, half of it progress display; the records of 960 frames take millions


@pytest.mark.parametrize("frames", [1, 50])
def test_only_runs_of_ids_are_kept(frames, tmp_path):
    with DetectionsWriter(tmp_path) as writer:
        for number in (3, 1, 2, *range(4, 4 + frames)):
            writer.add({"id": number, "file_name": ""}, [])
        assert [run[:2] for run in writer._runs] == [[3, 4], [1, 3], [4, 4 + frames]]
