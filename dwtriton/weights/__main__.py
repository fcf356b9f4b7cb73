"""`python -m dwtriton.weights`: show checkpoints, and convert them from and to other formats."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from dwtriton.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dwtriton.checkpoints.mmdet_config import check_mmdet_config
from dwtriton.checkpoints.mmdet_file import MAX_NAMES, is_mmdet, kind_of, read_checkpoint_file, sort_mmdet
from dwtriton.checkpoints.safetensors_file import load_safetensors, save_safetensors
from dwtriton.config.load import dump_config, load_config
from dwtriton.config.schema import Config
from dwtriton.console import cli
from dwtriton.console.cli import print_line
from dwtriton.core.errors import UserError
from dwtriton.core.files import check_new_file
from dwtriton.core.text import listed
from dwtriton.data.annotations import read_valid_records
from dwtriton.model.backbone import load_backbone_weights
from dwtriton.model.detector import build_detector
from dwtriton.model.mmdet_names import CENTER_PRIOR, from_mmdet, to_mmdet
from dwtriton.model.state_dict import write_torch_file
from dwtriton.weights.show import summarise

EXAMPLES = {
    "show": """\
  python -m dwtriton.weights show runs/r50/last.pt
  python -m dwtriton.weights show dw_r50_fpn_1x.pth""",
    "from-mmdet": """\
  python -m dwtriton.weights from-mmdet dw_r50_fpn_1x.pth --cfg r50_refine_1x --out r50_refine.pt
  python -m dwtriton.weights from-mmdet my.pth --cfg r50_1x --set head.num_classes=3 --classes val.json --out my.pt""",
    "to-mmdet": """\
  python -m dwtriton.weights to-mmdet runs/r50/last.pt --out r50.pth""",
    "to-safetensors": """\
  python -m dwtriton.weights to-safetensors runs/r50/best.pt --out r50.safetensors""",
    "from-safetensors": """\
  python -m dwtriton.weights from-safetensors r50.safetensors --out r50.pt""",
    "from-torchvision": """\
  python -m dwtriton.weights from-torchvision resnet50.pth --cfg r50_1x --out start.pt""",
}


def build_parser() -> argparse.ArgumentParser:
    description = "Show checkpoints, and convert them from and to MMDetection."
    parser, add_action = cli.parser_with_actions("dwtriton.weights", description, EXAMPLES)
    for name, run, help, file in (
        ("show", show, "show what a file holds", "checkpoint of this package or MMDetection, or torchvision weights"),
        ("from-mmdet", convert_from_mmdet, "convert a checkpoint of MMDetection", "MMDetection checkpoint"),
        ("to-mmdet", convert_to_mmdet, "convert a checkpoint for MMDetection", "checkpoint of this package"),
        ("to-safetensors", convert_to_safetensors, "convert to a safetensors file", "checkpoint of this package"),
        ("from-safetensors", convert_from_safetensors, "convert from a safetensors file", "by `to-safetensors`"),
        ("from-torchvision", convert_from_torchvision, "convert the weights of a torchvision ResNet", "its state dict"),
    ):
        action = add_action(name, run, help)
        action.add_argument("file", metavar="FILE", type=Path, help=file)
        if name in ("from-mmdet", "from-torchvision"):
            cli.add_options(action, "--cfg", "--set")
            classes = "COCO JSON with the classes, if they are not COCO's 80"
            action.add_argument("--classes", metavar="FILE", type=Path, help=classes)
        if name != "show":
            cli.add_options(action, "--out", "--force")
    return parser


def show(arguments: argparse.Namespace, console: Console) -> dict[str, str]:
    """Print facts about a file and a table of its parts; return the facts."""
    facts, parts = summarise(arguments.file)
    table = Table(show_header=False)
    for key, value in facts.items():
        table.add_row(key, value)
    console.print(table)
    console.print(parts)
    return facts


def convert_from_mmdet(arguments: argparse.Namespace, console: Console) -> None:
    """Write a checkpoint with the weights of an MMDetection file; print what was converted and what was left out.

    Raises UserError that lists all tensors that do not fit the config, and the configs that they do fit.
    """
    cfg = load_config(arguments.cfg, arguments.set)
    content = read_checkpoint_file(arguments.file)
    if not is_mmdet(content):
        raise UserError(
            f"{arguments.file} is not an MMDetection checkpoint, but {kind_of(content)}; `show` describes it"
        )
    file = sort_mmdet(content, str(arguments.file))
    if file.num_classes not in (None, cfg.head.num_classes):
        raise UserError(
            f"{arguments.file} detects {file.num_classes} classes, but head.num_classes of {arguments.cfg} is "
            f"{cfg.head.num_classes}: add --set head.num_classes={file.num_classes}"
        )
    note = check_mmdet_config(file, cfg, str(arguments.file))
    classes = class_names(cfg, file.class_names, arguments.classes, console)
    with torch.device("meta"):
        own = build_detector(cfg).state_dict()
    try:
        renamed = from_mmdet(file.weights, own)
    except UserError as error:
        fitting = file.fitting_configs()
        raise UserError(f"{arguments.file}, with names and shapes of {fitting}: {error}") from None
    model = {name: tensor.clone() for name, tensor in renamed.items()}  # torch.save writes all memory under a view
    save_checkpoint(arguments.out, Checkpoint(cfg, list(classes.values()), list(classes), file.iteration, model))
    print_line(console, f"converted: {len(model)} tensors")
    if all(name in file.weights for name in CENTER_PRIOR):
        print_line(console, "left out: the 2 constants of the centre prior, which the method fixes here")
    for name, reason in file.left_out.items():
        print_line(console, f"left out: {name}, {reason}")
    if note:
        print_line(console, f"note: {note}", "yellow")


def convert_to_mmdet(arguments: argparse.Namespace, console: Console) -> None:
    """Write the weights that detection uses as a checkpoint that MMDetection loads."""
    checkpoint = load_checkpoint(arguments.file)
    meta = {"CLASSES": tuple(checkpoint.class_names), "iter": checkpoint.iteration}
    meta["dwtriton_config"] = dump_config(checkpoint.config)
    state = to_mmdet(checkpoint.weights)
    write_torch_file(arguments.out, {"meta": meta, "state_dict": state})
    which = "model" if checkpoint.ema is None else "EMA, which detection uses; the model's own are left out"
    print_line(console, f"converted: {len(state)} tensors of the {which}")


def convert_to_safetensors(arguments: argparse.Namespace, console: Console) -> None:
    """Write the weights that detection uses, with config and classes, as a safetensors file."""
    checkpoint = load_checkpoint(arguments.file)
    save_safetensors(arguments.out, checkpoint)
    which = "model" if checkpoint.ema is None else "EMA, which detection uses; the model's own are left out"
    print_line(console, f"converted: {len(checkpoint.weights)} tensors of the {which}")


def convert_from_safetensors(arguments: argparse.Namespace, console: Console) -> None:
    """Write a checkpoint with everything in a safetensors file of `to-safetensors`."""
    checkpoint = load_safetensors(arguments.file)
    save_checkpoint(arguments.out, checkpoint)
    print_line(console, f"converted: {len(checkpoint.model)} tensors; classes: {len(checkpoint.category_ids)}")


def convert_from_torchvision(arguments: argparse.Namespace, console: Console) -> None:
    """Write a checkpoint to start a run from: this backbone, pyramid and head with fresh weights."""
    if not arguments.file.is_file():
        raise UserError(f"{arguments.file} does not exist")
    cfg = load_config(arguments.cfg, arguments.set)
    classes = class_names(cfg, None, arguments.classes, console)
    torch.manual_seed(cfg.train.seed)
    detector = build_detector(cfg)
    loaded, fresh, ignored = load_backbone_weights(detector.backbone, str(arguments.file))
    save_checkpoint(arguments.out, Checkpoint(cfg, list(classes.values()), list(classes), 0, detector.state_dict()))
    print_line(console, f"backbone: {len(loaded)} tensors of {arguments.file}")
    print_line(console, f"pyramid and head: fresh, seed {cfg.train.seed}")
    if fresh:
        print_line(console, f"not in the file, so fresh too: {listed(fresh, MAX_NAMES)}")
    if ignored:
        print_line(console, f"left out: {', '.join(ignored)} (the classifier)")


def class_names(cfg: Config, names: list[str] | None, annotations: Path | None, console: Console) -> dict[int, str]:
    """Return the names of `annotations`, else `names`, else COCO's, by category id; print where they come from.

    Raises UserError if `annotations` and `names` differ, or if they are not `cfg.head.num_classes`.
    """
    coco = coco_categories()
    if annotations:
        categories = read_valid_records(annotations).categories.values()
        given = {category["id"]: category["name"] for category in sorted(categories, key=lambda c: c["id"])}
        if names not in (None, list(given.values())):
            raise UserError(f"the checkpoint's classes are {names}, those of {annotations} are {list(given.values())}")
        source = str(annotations)
    elif names in (None, list(coco.values())):
        given, source = coco, "COCO" if names else "taken to be COCO's, as the file names none"
    else:
        given, source = dict(enumerate(names, 1)), "the file; their category ids are not in it and were numbered from 1"
    if len(given) != cfg.head.num_classes:
        raise UserError(
            f"the classes ({source}) are {len(given)}, but head.num_classes is {cfg.head.num_classes}: "
            f"give others with --classes FILE, or another number with --set head.num_classes=N"
        )
    print_line(console, f"classes: {len(given)}, {source}")
    return given


def coco_categories() -> dict[int, str]:
    """Return the names of COCO's 80 detection classes by category id; the ids have gaps."""
    names = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {id_: name for id_, name in enumerate(names) if name not in ("__background__", "N/A")}


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    if "out" in arguments:
        check_new_file(arguments.out, arguments.force)
    result = arguments.run(arguments, console)
    if "out" in arguments:
        result = {"checkpoint": str(arguments.out)}
        print_line(console, f"checkpoint: {arguments.out}")
    cli.print_result(arguments, result)
    return 0


if __name__ == "__main__":
    cli.run(main)
