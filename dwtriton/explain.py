"""`python -m dwtriton.explain`: the positive and negative weights of an image's objects, as pictures."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dwtriton import cli
from dwtriton.cli import say
from dwtriton.data import CocoDataset, collate, draw_missing_shapes, normalise
from dwtriton.data.layout import check_layout
from dwtriton.dual_weight import DualWeightAssigner
from dwtriton.errors import UserError
from dwtriton.files import make_folder, write_atomically
from dwtriton.points import STRIDES
from dwtriton.train.checkpoint import Checkpoint, load_checkpoint, load_detector
from dwtriton.weight_pictures import Explanation, draw_object, draw_objects, draw_strip

__all__ = ["Explanation", "draw", "draw_strip", "explain"]

DPI = 150
EXAMPLES = """\
  python -m dwtriton.explain --weights runs/shapes-1/last.pt                      all objects of the first image
  python -m dwtriton.explain --weights best.pt --data ~/coco --image 000000000139.jpg --object 2
  python -m dwtriton.explain --weights runs/shapes-1/epoch-*.pt --object 0        how an object's weights changed"""


def draw(explanation: Explanation, box: int | None = None) -> Figure:
    """The weights of one box of an image, level by level; without `box` those of all its boxes, side by side.

    Raises UserError for a box that is not there, and for an image without boxes.
    """
    return draw_objects(explanation) if box is None else draw_object(explanation, box)


def explain(weights: Path, dataset: CocoDataset, index: int) -> Explanation:
    """What the network of a checkpoint and the label assignment make of an image of a data set.

    Raises UserError for a file that is no checkpoint and for an image that cannot be read.
    """
    detector, checkpoint = load_detector(weights)
    cfg = checkpoint.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.to(device, memory_format=torch.channels_last)
    example = dataset[index]
    if example.image is None:
        raise UserError(f"the image cannot be used: {example.broken[0]}")
    batch = collate([example], len(checkpoint.category_ids), cfg.data.size_divisor)
    images = normalise(batch.images.to(device), batch.image_sizes, cfg.data)
    with torch.no_grad():
        outputs = detector.head_outputs(images)
    assigner = DualWeightAssigner(STRIDES, cfg.loss.soft_prior, cfg.loss.backend)
    (found,) = assigner(*outputs, [{name: value.to(device) for name, value in example.target.items()}])
    crowd = example.target.get("iscrowd", torch.zeros(len(example.target["labels"]), dtype=torch.bool))
    return Explanation(
        image=example.image.permute(1, 2, 0).numpy(),
        weights=type(found)(*(part.cpu() for part in found)),
        boxes=example.target["boxes"][~crowd],
        labels=example.target["labels"][~crowd],
        level_sizes=[tuple(level.shape[2:]) for level in outputs[0]],
        names=checkpoint.labels,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command("dwtriton.explain", "Draw the positive and negative weights of an image's objects.", EXAMPLES)
    parser.add_argument(
        "--weights",
        metavar="FILE",
        type=Path,
        nargs="+",
        required=True,
        help="checkpoint, or several of one run (train.keep_every keeps them) to see how an object's weights changed",
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="folder in COCO layout (default: the run's data.root)")
    parser.add_argument("--image", metavar="NAME|ID", help="of the validation split (default: the first with objects)")
    parser.add_argument(
        "--object", metavar="N", type=int, help="number of an object, in the order of the annotations from 0"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("explanation"), help="for the pictures")
    parser.add_argument("--force", action="store_true", help="replace pictures that exist")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    if len(arguments.weights) > 1 and arguments.object is None:
        raise UserError("several checkpoints show how one object's weights changed: choose it with --object N")
    checkpoint = load_checkpoint(arguments.weights[0])
    dataset = open_data(checkpoint, arguments.data)
    index = find_image(dataset, arguments.image)
    steps = [(weights.stem, explain(weights, dataset, index)) for weights in arguments.weights]
    name = Path(dataset.paths[index]).stem
    if len(steps) > 1:
        file, figure = f"{name}-object-{arguments.object}-strip.png", draw_strip(steps, arguments.object)
    elif arguments.object is not None:
        file, figure = f"{name}-object-{arguments.object}.png", draw(steps[0][1], arguments.object)
    else:
        file, figure = f"{name}.png", draw(steps[0][1])
    picture = arguments.out / file
    if picture.exists() and not arguments.force:
        raise UserError(f"{picture} already exists: add --force to replace it, or choose another --out")
    make_folder(arguments.out)
    write_atomically(picture, lambda path: figure.savefig(path, dpi=DPI))
    explained = steps[0][1]
    for number in range(len(explained.boxes)):
        say(console, f"object {explained.title(number)}, box {[round(x) for x in explained.boxes[number].tolist()]}")
    say(console, f"picture: {picture}")
    cli.print_result(
        arguments, {"picture": str(picture), "image": dataset.paths[index], "objects": len(explained.boxes)}
    )
    return 0


def open_data(checkpoint: Checkpoint, root: Path | None) -> CocoDataset:
    """The validation split that the checkpoint's run was evaluated on, or the one at `root`."""
    data = checkpoint.config.data if root is None else checkpoint.config.data.model_copy(update={"root": root})
    draw_missing_shapes(data)
    check_layout(data, ("val",))
    dataset = CocoDataset(data, "val", keep_crowd=checkpoint.config.loss.ignore_crowd)
    if len(dataset.class_names) != len(checkpoint.category_ids):
        raise UserError(
            f"the checkpoint knows {len(checkpoint.category_ids)} classes, the data in {data.root} has "
            f"{len(dataset.class_names)}"
        )
    return dataset


def find_image(dataset: CocoDataset, wanted: str | None) -> int:
    """The item with this file name or image id; without one the first that has objects. Raises UserError."""
    if wanted is None:
        return next((index for index in range(len(dataset)) if dataset.box_count(index)), 0)
    for index, (path, image_id) in enumerate(zip(dataset.paths, dataset.image_ids)):
        if wanted in (Path(path).name, str(image_id)):
            return index
    raise UserError(f"the validation split has no image {wanted!r}, neither as a file name nor as an id")


if __name__ == "__main__":
    cli.run(main)
