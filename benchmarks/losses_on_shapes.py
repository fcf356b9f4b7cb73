"""torchvision's FCOS trained by its own loss and by Dual Weighting: one network, the same batches, the same budget.

    python -m benchmarks.losses_on_shapes

trains a small FCOS (R-18, FPN, torchvision's head) from scratch on the generated `shapes` data, once for each loss and
learning rate, and writes benchmarks/results/losses_on_shapes/MACHINE.json and .png after each run, so that an
interrupted benchmark keeps the finished ones. Every run has the same initial weights, batches, augmentation, optimiser
and schedule; each loss is the plain sum of its terms. Points are the centres of the cells in both losses and in
decoding: torchvision's own anchors are at the corners of the cells, so its matching gets anchors moved to the centres.
Detections of both come from `dwtriton.postprocess` and are evaluated by pycocotools on the validation images.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.detectors import autocast
from benchmarks.losses_report import draw, markdown_table
from benchmarks.machine import find_device, machine
from benchmarks.recording import RESULTS, reason, results_file, significant
from dwtriton import DualWeightLoss, postprocess
from dwtriton.config.load import load_config
from dwtriton.config.schema import Config
from dwtriton.console.cli import print_line, print_text, run
from dwtriton.console.progress import ProgressDisplay
from dwtriton.core.files import make_folder, write_text
from dwtriton.core.points import STRIDES, pyramid_points
from dwtriton.data.batch import Batch
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import eval_loader, train_loader
from dwtriton.data.prepare import prepare_data
from dwtriton.evaluate.coco_metrics import evaluate
from dwtriton.inference.detect import detect
from dwtriton.model.pixels import PixelDetector
from dwtriton.train.metrics import Speed, losses_line
from dwtriton.train.optimizer import build_optimizer, lr_factor, set_learning_rate
from dwtriton.train.settle import settle_for_device

Targets = list[dict[str, Tensor]]
Losses = dict[str, Tensor]

EVALUATIONS = 5  # in a run, evenly spaced
SCORE_THRESHOLD = 0.05**2  # for products of two scores; torchvision's 0.05 is for their square roots


class SmallFCOS(nn.Module):
    """torchvision's FCOS with R-18, whose outputs are lists over levels of [B, channels, H, W]."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        channels, classes = cfg.head.channels, cfg.head.num_classes
        backbone = BackboneWithFPN(
            resnet18(weights=None),
            return_layers={"layer2": "0", "layer3": "1", "layer4": "2"},
            in_channels_list=[128, 256, 512],
            out_channels=channels,
            extra_blocks=LastLevelP6P7(channels, channels),
        )
        head = FCOSHead(channels, num_anchors=1, num_classes=classes, num_convs=cfg.head.convs)
        anchors = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES))
        self.fcos = FCOS(backbone, classes, anchor_generator=anchors, head=head)
        self.inference_cfg = cfg.inference
        self.dual_weight_loss = DualWeightLoss(STRIDES)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return class logits, distances in strides and objectness; float32 also under autocast."""
        levels = list(self.fcos.backbone(images).values())
        flat = self.fcos.head(levels)  # [B, points of all levels, channels]
        sizes = [level.shape[2:] for level in levels]
        counts = [size.numel() for size in sizes]
        return tuple(
            [part.float().transpose(1, 2).unflatten(2, size) for part, size in zip(flat[name].split(counts, 1), sizes)]
            for name in ("cls_logits", "bbox_regression", "bbox_ctrness")
        )

    def own_losses(
        self, cls_logits: list[Tensor], sides: list[Tensor], ctrness: list[Tensor], targets: Targets
    ) -> Losses:
        """Compute torchvision's three losses with its matching, for points at the centres of the cells."""
        named = {"cls_logits": cls_logits, "bbox_regression": sides, "bbox_ctrness": ctrness}
        flat = {name: torch.cat([level.flatten(2) for level in kind], 2).mT for name, kind in named.items()}
        sizes = [tuple(level.shape[2:]) for level in cls_logits]
        counts = [height * width for height, width in sizes]
        points = pyramid_points(sizes, device=cls_logits[0].device)
        half = torch.cat([points.new_full((count, 1), stride / 2) for count, stride in zip(counts, STRIDES)])
        anchors = torch.cat((points - half, points + half), 1)
        return self.fcos.compute_loss(targets, flat, [anchors] * len(targets), counts)

    def dual_weight_losses(
        self, cls_logits: list[Tensor], sides: list[Tensor], objectness: list[Tensor], targets: Targets
    ) -> Losses:
        """Compute the three losses of Dual Weighting."""
        return self.dual_weight_loss(cls_logits, in_pixels(sides), objectness, targets)

    @torch.inference_mode()
    def predict(
        self, images: Tensor, image_sizes: list[tuple[int, int]], scale_factors: list[tuple[float, float]]
    ) -> list[dict[str, Tensor]]:
        """Return detections in pixels of the original images."""
        cls_logits, sides, objectness = self(images)
        limits = self.inference_cfg.model_dump(exclude={"short_side", "long_side", "compile"}) | {
            "score_threshold": SCORE_THRESHOLD
        }
        return postprocess(cls_logits, in_pixels(sides), objectness, image_sizes, scale_factors, **limits)


LOSSES = {"torchvision": SmallFCOS.own_losses, "dual weighting": SmallFCOS.dual_weight_losses}


def in_pixels(sides: list[Tensor]) -> list[Tensor]:
    """Convert distances in strides to pixels."""
    return [level * stride for level, stride in zip(sides, STRIDES)]


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    console, device = Console(), torch.device(args.device)
    cfg = load_config("shapes", [f"train.seed={args.seed}", *args.set], data_root=args.data)
    cfg = settle_for_device(cfg, device)
    data = prepare_data(cfg, console)
    runs = [(loss, lr) for lr in args.lr for loss in LOSSES]
    results = {
        "machine": machine(device),
        "case": {"iterations": args.iterations, "batch_size": cfg.data.batch_size, "seed": args.seed}
        | {"precision": cfg.train.precision, "images": [len(split) for split in data]},
        "rows": [],
    }
    make_folder(args.out.parent)
    total, log_every = len(runs) * args.iterations, cfg.train.log_every
    with ProgressDisplay(console, "training", total, steps_between_lines=log_every) as display:
        for number, (loss, lr) in enumerate(runs):
            print_line(console, f"run {number + 1} of {len(runs)}: {loss}, learning rate {lr:g}")
            row = {"loss": loss, "lr": lr}
            try:
                row |= train(cfg, loss, lr, args.iterations, device, data, display)
                print_line(console, f"  AP {row['AP']:.3f}  AP50 {row['AP50']:.3f}  {row['ms']:g} ms a step")
            except RuntimeError as error:  # such as a loss that is not finite
                row["skipped"] = reason(error)
            results["rows"].append(row)
            write_text(args.out, json.dumps(results) + "\n")
            draw(results, args.out.with_suffix(".png"))
    print_text(console, f"{markdown_table(results)}\n\nwritten to {args.out}, .png beside it")
    return 0


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--iterations", type=int, default=600, help="of each run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and augmentation")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.001, 0.003], help="rates for 16 images")
    parser.add_argument("--data", type=Path, help="folder of the shapes data, generated if absent")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change the config `shapes`")
    parser.add_argument("--out", type=Path, help="JSON file; the plot goes beside it")
    args = parser.parse_args(arguments)
    if args.iterations < EVALUATIONS:
        parser.error(f"--iterations must be at least {EVALUATIONS}, one for each evaluation")
    args.out = args.out or results_file(find_device(args.device), RESULTS / "losses_on_shapes")
    return args


def train(
    cfg: Config,
    loss: str,
    lr: float,
    iterations: int,
    device: torch.device,
    data: tuple[CocoDataset, CocoDataset],
    display: ProgressDisplay,
) -> dict:
    """Train a run; return its final metrics on the validation images, AP curve, losses and milliseconds a step."""
    train_set, val_set = data
    torch.manual_seed(cfg.train.seed)
    model = SmallFCOS(cfg).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, cfg.optimizer.model_copy(update={"lr": lr}), cfg.data.batch_size)
    schedule = cfg.schedule.model_copy(update={"epochs": 1})  # an epoch of `iterations`
    speed, totals, times, curve = Speed(), [], [], []
    for iteration, (epoch, batch) in zip(range(iterations), endless(train_loader(train_set, cfg), speed)):
        began = time.perf_counter()
        set_learning_rate(optimizer, lr_factor(iteration, schedule, iterations))
        terms = step(model, loss, batch, optimizer, cfg, device)
        times.append(1e3 * (time.perf_counter() - began))
        totals.append(sum(terms.values()))
        if not math.isfinite(totals[-1]):
            raise RuntimeError(f"the losses of iteration {iteration + 1} are {terms}")
        display.advance(what=f"epoch {epoch + 1}", figures=f"{losses_line(terms)}  {speed}")
        if (iteration + 1) % cfg.train.log_every == 0:
            speed.reset()
        if (iteration + 1) * EVALUATIONS // iterations > iteration * EVALUATIONS // iterations:
            figures = evaluate_model(model, cfg, val_set, device, display)
            curve.append([iteration + 1, significant(figures["AP"])])
    return {
        **{name: significant(figures[name]) for name in ("AP", "AP50", "AP75")},
        "ms": significant(median(times)),
        "curve": curve,  # [iteration, AP]
        "losses": [significant(total) for total in totals],
    }


def endless(loader: torch.utils.data.DataLoader, speed: Speed) -> Iterator[tuple[int, Batch]]:
    """Yield (epoch, batch), one epoch after another."""
    epoch = 0
    while True:
        loader.batch_sampler.set_epoch(epoch)
        yield from ((epoch, batch) for batch in speed.timed(iter(loader)))
        epoch += 1


def step(
    model: SmallFCOS, loss: str, batch: Batch, optimizer: torch.optim.Optimizer, cfg: Config, device: torch.device
) -> dict[str, float]:
    """Update the weights by a batch; return the terms of the loss."""
    model.train()
    images = PixelDetector(model, cfg.data).normalise(batch.images.to(device), batch.image_sizes)
    targets = [{name: value.to(device) for name, value in target.items()} for target in batch.targets]
    optimizer.zero_grad(set_to_none=True)
    with autocast(cfg, device):
        outputs = model(images)
    terms = LOSSES[loss](model, *outputs, targets)
    sum(terms.values()).backward()
    optimizer.step()
    return {name: value.item() for name, value in terms.items()}


def evaluate_model(
    model: SmallFCOS, cfg: Config, val_set: CocoDataset, device: torch.device, display: ProgressDisplay
) -> dict[str, float]:
    """Return the COCO metrics on the validation images."""
    model.eval()
    loader = eval_loader(val_set, cfg)
    with display.stage("evaluating", len(loader)) as advance:
        predict = PixelDetector(model, cfg.data).predict
        results = detect(predict, loader, val_set.category_ids, lambda _batch: advance())
        return evaluate(val_set.coco, results).metrics


if __name__ == "__main__":
    run(main)
