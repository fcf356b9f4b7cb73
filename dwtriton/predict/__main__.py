"""`python -m dwtriton.predict`: detect in images and videos; pictures and COCO JSON out."""

import argparse
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torchvision.io import write_jpeg
from torchvision.ops import box_convert

from dwtriton.checkpoints.checkpoint import load_detector
from dwtriton.console import cli
from dwtriton.console.cli import print_line
from dwtriton.console.drawing import draw_boxes
from dwtriton.console.progress import progress
from dwtriton.core.errors import UserError
from dwtriton.core.files import make_folder, write_atomically, write_text
from dwtriton.data.batching import collate
from dwtriton.data.coco import Sample
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.inference.detect import detect_batch
from dwtriton.model.pixels import PixelDetector, compile_predict
from dwtriton.predict.inputs import batches_of_one_size, find_inputs, image_loader, picture_names, unlabelled_sample
from dwtriton.predict.video import Video, import_av, write_video

EXAMPLES = """\
  python -m dwtriton.predict --weights runs/shapes-1/last.pt image.jpg photos/ "more/*.png"
  python -m dwtriton.predict --weights best.pt street.mp4 --threshold 0.4 --out street
  python -m dwtriton.predict --weights best.pt photos/ --no-pictures --json"""
QUALITY = 92  # of JPEG files
LARGEST_JPEG = 65500  # pixels of a side


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.predict", "Detect in images and videos.", EXAMPLES)
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help='image, video, folder, or pattern such as "a/*.jpg"')
    cli.add_option(parser, "--weights")
    where = "folder for pictures and detections.json (default: %(default)s)"
    cli.add_option(parser, "--out", metavar="DIR", required=False, default=Path("predictions"), help=where)
    which = "keep boxes with a higher score (default: %(default)s)"
    parser.add_argument("--threshold", metavar="SCORE", type=float, default=0.3, help=which)
    parser.add_argument("--batch", metavar="N", type=int, default=8, help="images at a time (default: %(default)s)")
    parser.add_argument("--no-pictures", action="store_true", help="write only detections.json")
    cli.add_option(parser, "--force", help="write into --out even if it is not empty")
    cli.add_option(parser, "--set")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold is a score from 0 to 1, not {arguments.threshold}")
    if arguments.batch < 1:
        raise UserError(f"--batch must be at least 1, not {arguments.batch}")
    images, videos = find_inputs(arguments.inputs)
    if videos:
        import_av()
    check_out(arguments.out, arguments.force, [*images, *videos])
    predictor = Predictor(arguments, [*images, *videos], console)
    make_folder(arguments.out)
    results_file = arguments.out / "detections.json"
    try:
        predictor.images(images)
        for video in videos:
            predictor.video(video)
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU has too little memory for {arguments.batch} images at a time; lower --batch"
        ) from None
    except KeyboardInterrupt:
        print_line(console, "interrupted; what was found so far is kept", "yellow")
        raise
    finally:
        predictor.report()
        if predictor.pictures:
            write_text(results_file, json.dumps(predictor.coco()))
            print_line(console, f"detections: {results_file}")
    if not predictor.pictures:
        raise UserError(f"none of {len(images) + len(videos)} files could be used; the first: {predictor.skipped[0]}")
    cli.print_result(arguments, {"out": str(arguments.out), **predictor.counts()})
    return 0


def check_out(out: Path, force: bool, inputs: Sequence[Path]) -> None:
    """Raise UserError if something may be replaced that must not be, inputs above all."""
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{path} lies in --out {out}, where pictures of the same name may go: choose another --out")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"{out} is not empty: add --force to write into it all the same, or choose another --out")


class Predictor:
    """Detects in one input after another, draws, and gathers what was found under COCO's names."""

    def __init__(self, arguments: argparse.Namespace, inputs: Sequence[Path], console: Console) -> None:
        """Load the detector; raises UserError if it cannot be. `inputs` are all that will come."""
        self.console, self.batch, self.weights = console, arguments.batch, arguments.weights
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        overrides = [f"inference.score_threshold={arguments.threshold}", *arguments.set]
        detector, self.checkpoint = load_detector(arguments.weights, overrides)
        self.cfg = self.checkpoint.config
        detector.to(self.device, memory_format=torch.channels_last)
        self.predict = compile_predict(PixelDetector(detector, self.cfg.data), self.cfg.inference.compile)
        if not self.checkpoint.class_names:
            print_line(console, f"{arguments.weights} has no class names; category ids are shown instead", "yellow")
        names = {} if arguments.no_pictures else picture_names(inputs)
        self.draw_to = {path: arguments.out / name for path, name in names.items()}
        self.pictures: list[dict[str, Any]] = []  # COCO's images: files, and frames of videos
        self.found: list[dict[str, Any]] = []  # COCO's annotations, with scores
        self.skipped: list[str] = []  # "PATH: reason" of inputs in which nothing could be read
        self.incomplete: list[str] = []  # and of videos that could not be read to their end

    def images(self, paths: Sequence[Path]) -> None:
        """Detect in image files."""
        if not paths:
            return
        with progress(self.console, "images", len(paths)) as advance:
            for sample, found in self._detect(self._readable(paths, advance)):
                size, path = original_size(sample), Path(sample.path)
                self._keep(sample, size, found)
                if path in self.draw_to and max(size) > LARGEST_JPEG:
                    print_line(self.console, f"not drawn, a side has more than {LARGEST_JPEG} pixels: {path}", "yellow")
                elif path in self.draw_to:
                    picture = self._draw(read_image(path), found)
                    write_atomically(self.draw_to[path], lambda file, p=picture: write_jpeg(p, str(file), QUALITY))
                    self.pictures[-1]["drawn"] = self.draw_to[path].name
                advance()

    def _readable(self, paths: Sequence[Path], advance: Callable[[], None]) -> Iterator[Sample]:
        for sample in image_loader(paths, self.cfg):
            if sample.image is not None:
                yield sample
            else:
                self.skipped += sample.broken
                advance()

    def video(self, path: Path) -> None:
        """Detect in every frame of a video. What was read before it broke off counts, and is drawn."""
        try:
            video = Video(path)
        except BrokenImageError as error:
            self.skipped.append(str(error))
            return
        before = len(self.pictures)
        with video, progress(self.console, path.name, video.length) as advance:
            frames = self._frames(video, advance)
            first = next(frames, None)
            if first is not None and path in self.draw_to:
                shown = chain([first], frames)
                write_atomically(self.draw_to[path], lambda file: write_video(file, shown, video.rate))
                for picture in self.pictures[before:]:
                    picture["drawn"] = self.draw_to[path].name
            deque(frames, maxlen=0)  # the rest, where nothing is drawn

    def _frames(self, video: Video, advance: Callable[[], None]) -> Iterator[Tensor]:
        """Detect in the frames of a video one batch after another; yields what to show of each."""
        first_id = max((picture["id"] for picture in self.pictures), default=0) + 1
        on_their_way: deque[Tensor] = deque()

        def samples() -> Iterator[Sample]:
            try:
                for image_id, frame in enumerate(video.frames(), first_id):
                    on_their_way.append(frame)
                    yield unlabelled_sample(frame, self.cfg, image_id, str(video.path))
            except BrokenImageError as error:
                (self.incomplete if video.read else self.skipped).append(str(error))

        for sample, found in self._detect(samples()):
            frame = on_their_way.popleft()
            self._keep(sample, tuple(frame.shape[1:]), found, frame_id=sample.image_id - first_id)
            advance()
            yield self._draw(frame, found) if video.path in self.draw_to else frame

    def coco(self) -> dict[str, Any]:
        """All that was found, as COCO JSON, in the order of the inputs."""
        annotations = sorted(self.found, key=lambda annotation: annotation["image_id"])  # stable: best first in each
        classes = zip(self.checkpoint.category_ids, self.checkpoint.labels)
        return {
            "info": {
                "description": f"detections of {self.weights}",
                "score_threshold": self.cfg.inference.score_threshold,
                "skipped": self.skipped,
                "incomplete": self.incomplete,
            },
            "images": sorted(self.pictures, key=lambda picture: picture["id"]),
            "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
            "categories": [{"id": id_, "name": name} for id_, name in classes],
        }

    def counts(self) -> dict[str, Any]:
        """How much was done, and what could not be."""
        frames = sum("frame_id" in picture for picture in self.pictures)
        return {
            "images": len(self.pictures) - frames,
            "frames": frames,
            "detections": len(self.found),
            "skipped": self.skipped,
            "incomplete": self.incomplete,
        }

    def report(self) -> None:
        """Say what was found and what was not read."""
        for line in self.skipped:
            print_line(self.console, f"skipped: {line}", "yellow")
        for line in self.incomplete:
            print_line(self.console, f"incomplete: {line}", "yellow")
        line = "{images} images and {frames} video frames: {detections} detections".format(**self.counts())
        print_line(self.console, f"{line}; {len(self.skipped)} files skipped")

    def _detect(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, list[dict[str, Any]]]]:
        """Each sample with what is found in it, as COCO results, best first."""
        for batch in batches_of_one_size(samples, self.batch, self.cfg.data.size_divisor):
            loaded = collate(batch, self.cfg.head.num_classes, self.cfg.data.size_divisor)
            ids = self.checkpoint.category_ids
            yield from zip(batch, detect_batch(self.predict, loaded, ids))

    def _keep(self, sample: Sample, size: tuple[int, int], found: list[dict[str, Any]], **more: int) -> None:
        """Note an image of the given (h, w) and what was found in it."""
        height, width = size
        picture = {"id": sample.image_id, "file_name": sample.path, "height": height, "width": width, **more}
        self.pictures.append(picture)
        for result in found:
            _, _, width, height = result["bbox"]
            self.found.append({**result, "area": width * height, "iscrowd": 0})

    def _draw(self, image: Tensor, found: list[dict[str, Any]]) -> Tensor:
        labels = [self.checkpoint.category_ids.index(result["category_id"]) for result in found]
        texts = [f"{self.checkpoint.labels[label]} {result['score']:.2f}" for label, result in zip(labels, found)]
        xywh = torch.tensor([result["bbox"] for result in found]).reshape(-1, 4)
        return draw_boxes(image, box_convert(xywh, "xywh", "xyxy"), labels, texts)


def original_size(sample: Sample) -> tuple[int, int]:
    """(h, w) of the file that a sample was made from."""
    sx, sy = sample.scale_factor
    return round(sample.image.shape[1] / sy), round(sample.image.shape[2] / sx)


if __name__ == "__main__":
    cli.run(main)
