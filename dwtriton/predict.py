"""`python -m dwtriton.predict`: detect in images and videos; pictures and COCO JSON out."""

import argparse
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.io import write_jpeg
from torchvision.ops import box_convert

from dwtriton import cli
from dwtriton.annotate import draw_boxes
from dwtriton.cli import say
from dwtriton.config import Config
from dwtriton.data.batching import collate
from dwtriton.data.buckets import padded_size
from dwtriton.data.coco import Example
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.data.inputs import ImageFiles, find_inputs, test_example
from dwtriton.data.transforms import normalise
from dwtriton.data.video import import_av, video_frames, video_rate, write_video
from dwtriton.errors import UserError
from dwtriton.files import make_folder, write_atomically, write_text
from dwtriton.model.compiled import compile_predict
from dwtriton.train.checkpoint import load_detector

EXAMPLES = """\
  python -m dwtriton.predict --weights runs/shapes-1/best.pt image.jpg photos/ "more/*.png"
  python -m dwtriton.predict --weights best.pt street.mp4 --threshold 0.4 --out street
  python -m dwtriton.predict --weights best.pt photos/ --no-pictures --json"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command("dwtriton.predict", "Detect in images and videos.", EXAMPLES)
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="image, video, folder or glob")
    parser.add_argument("--weights", metavar="FILE", type=Path, required=True, help="checkpoint of a run")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("predictions"), help="for pictures and detections.json"
    )
    parser.add_argument("--threshold", type=float, default=0.3, help="least score (default: %(default)s)")
    parser.add_argument("--batch", metavar="N", type=int, default=8, help="images at a time (default: %(default)s)")
    parser.add_argument("--no-pictures", action="store_true", help="write detections.json alone")
    parser.add_argument("--force", action="store_true", help="replace what --out holds")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change one config key; repeatable"
    )
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
    if arguments.out.is_dir() and any(arguments.out.iterdir()) and not arguments.force:
        raise UserError(f"{arguments.out} is not empty: add --force to replace what it holds, or choose another --out")
    results_file = arguments.out / "detections.json"
    predictor = Predictor(arguments, console)
    make_folder(arguments.out)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        predictor.images(images, bar)
        for video in videos:
            predictor.video(video, bar)
    write_text(results_file, json.dumps(predictor.coco()))
    for line in predictor.broken:
        say(console, f"skipped, cannot be used: {line}", "yellow")
    what = f"{len(predictor.pictures)} pictures or frames, {len(predictor.found)} detections"
    say(console, f"{what}, {len(predictor.broken)} files skipped; {results_file}")
    cli.print_result(
        arguments,
        {
            "detections": str(results_file),
            "pictures": len(predictor.pictures),
            "found": len(predictor.found),
            "skipped": predictor.broken,
        },
    )
    return 0 if predictor.pictures else 1


class Predictor:
    """Detects in one input after another and gathers what was found, under COCO's names."""

    def __init__(self, arguments: argparse.Namespace, console: Console) -> None:
        self.out, self.batch = arguments.out, arguments.batch
        self.threshold, self.draws = arguments.threshold, not arguments.no_pictures
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        threshold = f"test.score_threshold={arguments.threshold}"
        detector, self.checkpoint = load_detector(arguments.weights, [threshold, *arguments.set])
        self.cfg: Config = self.checkpoint.config
        detector.to(self.device, memory_format=torch.channels_last)
        self.predict = compile_predict(detector, self.cfg.inference.compile)
        self.names = self.checkpoint.labels
        if not self.checkpoint.class_names:
            say(console, f"{arguments.weights} has no class names; numbers are shown", "yellow")
        self.pictures: list[dict[str, Any]] = []  # COCO's images
        self.found: list[dict[str, Any]] = []  # COCO's annotations, with scores
        self.broken: list[str] = []

    def images(self, paths: list[Path], bar: Progress) -> None:
        """Detect in image files; their pictures go to --out under the same name, or numbered if that is taken."""
        if not paths:
            return
        task = bar.add_task("images", total=len(paths))
        loader = DataLoader(ImageFiles(paths, self.cfg.data), batch_size=None, num_workers=self.cfg.data.workers)
        taken: set[Path] = set()
        for example, detections in self._detect(self._readable(loader)):
            self._keep(example.path, original_size(example), detections)
            if self.draws:
                path = Path(example.path)
                picture = self.out / f"{path.stem}.jpg"
                if picture in taken:
                    picture = self.out / f"{path.stem}-{example.image_id}.jpg"
                taken.add(picture)
                drawn = self._draw(read_image(path), detections)
                write_atomically(picture, lambda file, drawn=drawn: write_jpeg(drawn, str(file), quality=92))
            bar.advance(task)

    def video(self, path: Path, bar: Progress) -> None:
        """Detect in every frame; the video with boxes goes to --out as MP4."""
        task = bar.add_task(path.name, total=None)
        frames: deque[Tensor] = deque()

        def examples() -> Iterator[Example]:
            try:
                for number, frame in enumerate(video_frames(path)):
                    frames.append(frame)
                    yield test_example(frame, self.cfg.data, number, str(path))
            except BrokenImageError as error:
                self.broken.append(str(error))

        def drawn() -> Iterator[Tensor]:
            for example, detections in self._detect(examples()):
                frame = frames.popleft()
                self._keep(str(path), tuple(frame.shape[1:]), detections, frame=example.image_id)
                bar.advance(task)
                yield self._draw(frame, detections) if self.draws else frame

        pictures = drawn()
        first = next(pictures, None)
        if self.draws and first is not None:
            video = self.out / f"{path.stem}.mp4"
            write_atomically(video, lambda file: write_video(file, chain([first], pictures), video_rate(path)))
        deque(pictures, maxlen=0)  # what is left of them, where nothing is drawn

    def coco(self) -> dict[str, Any]:
        """All that was found, as COCO JSON."""
        categories = [{"id": id_, "name": name} for id_, name in zip(self.checkpoint.category_ids, self.names)]
        return {"images": self.pictures, "annotations": self.found, "categories": categories}

    def _readable(self, examples: Iterable[Example]) -> Iterator[Example]:
        for example in examples:
            self.broken += example.broken
            if example.image is not None:
                yield example

    def _detect(self, examples: Iterable[Example]) -> Iterator[tuple[Example, dict[str, Tensor]]]:
        """Detections of each example, in batches of one padded size: what is found in an image depends on it alone."""
        waiting: dict[tuple[int, int], list[Example]] = defaultdict(list)
        for example in examples:
            size = padded_size([tuple(example.image.shape[1:])], self.cfg.data.size_divisor)
            waiting[size].append(example)
            if len(waiting[size]) == self.batch:
                yield from self._detect_batch(waiting.pop(size))
        for batch in waiting.values():
            yield from self._detect_batch(batch)

    def _detect_batch(self, examples: list[Example]) -> Iterator[tuple[Example, dict[str, Tensor]]]:
        batch = collate(examples, self.cfg.head.num_classes, self.cfg.data.size_divisor)
        images = normalise(batch.images.to(self.device), batch.image_sizes, self.cfg.data)
        detections = self.predict(images, batch.image_sizes, batch.scale_factors)
        for example, found in zip(examples, detections):
            yield example, {name: values.cpu() for name, values in found.items()}

    def _keep(self, name: str, size: tuple[int, int], detections: dict[str, Tensor], frame: int | None = None) -> None:
        picture = {"id": len(self.pictures) + 1, "file_name": name, "height": size[0], "width": size[1]}
        self.pictures.append(picture if frame is None else {**picture, "frame_index": frame})
        boxes = box_convert(detections["boxes"].double(), "xyxy", "xywh").tolist()
        for box, score, label in zip(boxes, detections["scores"].tolist(), detections["labels"].tolist()):
            self.found.append(
                {
                    "id": len(self.found) + 1,
                    "image_id": picture["id"],
                    "category_id": self.checkpoint.category_ids[label],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": score,
                }
            )

    def _draw(self, image: Tensor, detections: dict[str, Tensor]) -> Tensor:
        labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
        texts = [f"{self.names[label]} {score:.2f}" for label, score in zip(labels, scores)]
        return draw_boxes(image, detections["boxes"], labels, texts)


def original_size(example: Example) -> tuple[int, int]:
    """(h, w) of the file that an example was made from."""
    sx, sy = example.scale_factor
    return round(example.image.shape[1] / sy), round(example.image.shape[2] / sx)


if __name__ == "__main__":
    cli.run(main)
