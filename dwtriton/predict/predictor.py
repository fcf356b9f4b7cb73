"""Detecting in images and videos one after another: what is found is written and drawn."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from torch import Tensor

from dwtriton.console.cli import print_line
from dwtriton.console.drawing import draw_boxes
from dwtriton.console.progress import progress
from dwtriton.core.files import write_file
from dwtriton.data.coco import Sample
from dwtriton.data.images import BrokenImageError, encode_jpeg, read_image
from dwtriton.inference.detect import coco_results
from dwtriton.inference.inputs import unlabelled_sample
from dwtriton.inference.ready import ReadyDetector
from dwtriton.inference.tiles import Tiling, detect_in_tiles
from dwtriton.predict.inputs import image_samples
from dwtriton.predict.video import Video, write_video
from dwtriton.predict.writer import DetectionsWriter

JPEG_QUALITY = 92
MAX_JPEG_SIDE = 65500  # pixels


class Found(NamedTuple):
    """An image file, its (h, w), and its detections."""

    image_id: int
    path: Path
    size: tuple[int, int]
    detections: dict[str, Tensor]


@dataclass
class Predictor:
    """Detects in inputs, hands what it finds to a writer and draws it."""

    ready: ReadyDetector
    writer: DetectionsWriter
    draw_to: Mapping[Path, Path]  # the picture or video to write, by input
    batch_size: int
    console: Console
    tiling: Tiling | None = None  # of images, not of videos
    skipped: list[str] = field(default_factory=list)  # "PATH: reason" of inputs in which nothing could be read
    incomplete: list[str] = field(default_factory=list)  # the same of videos that could not be read to their end
    doubtful: list[str] = field(default_factory=list)  # the same of images that were used all the same

    def predict_images(self, paths: Sequence[Path]) -> None:
        """Detect in image files."""
        with progress(self.console, "images", len(paths)) as advance:
            found_in = self._in_tiles(paths, advance) if self.tiling else self._in_whole_images(paths, advance)
            for image_id, path, size, found in found_in:
                self._add(image_id, str(path), size, found)
                if path in self.draw_to and max(size) > MAX_JPEG_SIDE:
                    problem = f"not drawn, a side has more than {MAX_JPEG_SIDE} pixels: {path}"
                    print_line(self.console, problem, "yellow")
                elif path in self.draw_to:
                    picture = encode_jpeg(self._draw(read_image(path), found), JPEG_QUALITY)
                    write_file(self.draw_to[path], lambda file, p=picture: file.write(p))
                    self.writer.set_drawn(str(path), self.draw_to[path].name)
                advance()

    def _in_whole_images(self, paths: Sequence[Path], advance: Callable[[], None]) -> Iterator[Found]:
        for sample, found in self.ready.detect(self._readable(paths, advance), self.batch_size):
            sx, sy = sample.scale_factor
            size = round(sample.image.shape[1] / sy), round(sample.image.shape[2] / sx)  # before resizing
            yield Found(sample.image_id, Path(sample.path), size, found)

    def _in_tiles(self, paths: Sequence[Path], advance: Callable[[], None]) -> Iterator[Found]:
        for image_id, path in enumerate(paths, 1):
            try:
                pixels = read_image(path)
            except BrokenImageError as error:
                self.skipped.append(str(error))
                advance()
            else:
                found = detect_in_tiles(self.ready, pixels, self.tiling, self.batch_size)
                yield Found(image_id, path, tuple(pixels.shape[1:]), found)

    def _readable(self, paths: Sequence[Path], advance: Callable[[], None]) -> Iterator[Sample]:
        for sample in image_samples(paths, self.ready.config):
            if sample.image is not None:
                self.doubtful += sample.broken
                yield sample
            else:
                self.skipped += sample.broken
                advance()

    def predict_video(self, path: Path) -> None:
        """Detect in every frame of a video. Frames before a damaged part count and are drawn."""
        try:
            video = Video(path)
        except BrokenImageError as error:
            self.skipped.append(str(error))
            return
        with video, progress(self.console, path.name, video.length) as advance:
            frames = self._frames(video, advance)
            first = next(frames, None)
            if first is not None and path in self.draw_to:
                shown = chain([first], frames)
                write_file(self.draw_to[path], lambda file: write_video(file, shown, video.rate))
                self.writer.set_drawn(str(path), self.draw_to[path].name)
            deque(frames, maxlen=0)  # the rest, where nothing is drawn

    def _frames(self, video: Video, advance: Callable[[], None]) -> Iterator[Tensor]:
        """Detect in the frames of a video, batch by batch, and yield each as it is to be shown."""
        first_id = self.writer.last_id + 1
        in_progress: deque[Tensor] = deque()

        def samples() -> Iterator[Sample]:
            try:
                for image_id, frame in enumerate(video.frames(), first_id):
                    in_progress.append(frame)
                    yield unlabelled_sample(frame, self.ready.config, image_id, str(video.path))
            except BrokenImageError as error:
                (self.incomplete if video.read else self.skipped).append(str(error))

        for sample, found in self.ready.detect(samples(), self.batch_size):
            frame = in_progress.popleft()
            size = tuple(frame.shape[1:])
            self._add(sample.image_id, sample.path, size, found, frame_id=sample.image_id - first_id)
            advance()
            yield self._draw(frame, found) if video.path in self.draw_to else frame

    def _add(self, image_id: int, path: str, size: tuple[int, int], found: dict[str, Tensor], **more: int) -> None:
        """Hand an image of the given (h, w) and its detections to the writer."""
        image = {"id": image_id, "file_name": path, "height": size[0], "width": size[1], **more}
        results = coco_results(found, image_id, self.ready.category_ids)
        areas = [result["bbox"][2] * result["bbox"][3] for result in results]
        self.writer.add(image, [{**result, "area": area, "iscrowd": 0} for result, area in zip(results, areas)])

    def _draw(self, image: Tensor, found: dict[str, Tensor]) -> Tensor:
        labels, scores = found["labels"].tolist(), found["scores"].tolist()
        texts = [f"{self.ready.class_names[label]} {score:.2f}" for label, score in zip(labels, scores)]
        return draw_boxes(image, found["boxes"], labels, texts)

    def counts(self) -> dict[str, Any]:
        """Return the numbers of images, frames and detections, and the inputs with problems."""
        numbers = {name: getattr(self.writer, name) for name in ("images", "frames", "detections")}
        return {**numbers, "skipped": self.skipped, "incomplete": self.incomplete, "doubtful": self.doubtful}
