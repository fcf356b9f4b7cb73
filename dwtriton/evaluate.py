"""`python -m dwtriton.evaluate`: COCO figures and detections of a trained detector."""

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dwtriton import cli
from dwtriton.cli import say
from dwtriton.data import draw_missing_shapes, eval_loader, prepare_validation
from dwtriton.files import make_folder, write_text
from dwtriton.model.compiled import compile_predict
from dwtriton.report import report_html
from dwtriton.train import ranks
from dwtriton.train.checkpoint import CheckpointError, load_detector
from dwtriton.train.evaluation import Evaluation, detect, evaluate, gather_results

EXAMPLES = """\
  python -m dwtriton.evaluate --weights runs/shapes-1/last.pt
  python -m dwtriton.evaluate --weights best.pt --data ~/coco --out results --set test.nms_iou=0.5
  torchrun --nproc-per-node 8 -m dwtriton.evaluate --weights best.pt --data ~/coco    on eight GPUs"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command("dwtriton.evaluate", "COCO figures of a checkpoint on the validation split.", EXAMPLES)
    parser.add_argument(
        "--weights", metavar="FILE", type=Path, required=True, help="checkpoint of a training run, or a converted one"
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="folder in COCO layout (default: the run's data.root)")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="for the results (default: `evaluation` beside the weights)"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change one config key; repeatable"
    )
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    with ranks.joined():
        return run(arguments, cli.open_console(arguments, ranks.is_first()))


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Detect in this process's share of the images; the first process evaluates and writes. Returns the exit code."""
    with ranks.one_error():
        detector, checkpoint = load_detector(arguments.weights, arguments.set, arguments.data)
        out = arguments.out or arguments.weights.parent / "evaluation"
        cfg = checkpoint.config
    ranks.check_same_config(cfg)
    with ranks.one_error(), ranks.in_turn():
        draw_missing_shapes(cfg.data)
    with ranks.one_error():
        data = prepare_validation(cfg)
        if data.class_names != checkpoint.class_names:
            raise CheckpointError(
                f"{arguments.weights} knows {checkpoint.class_names}, the data has {data.class_names}"
            )
        make_folder(out)
    ranks.check_same({"data": data.fingerprint, "iteration": checkpoint.iteration, "--out": str(out)})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.to(device, memory_format=torch.channels_last)

    loader = eval_loader(data, cfg, ranks.rank(), ranks.world_size())
    broken = set()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("detecting", total=len(loader))
        own = detect(
            compile_predict(detector, cfg.inference.compile),
            device,
            loader,
            cfg.data,
            data.category_ids,
            lambda batch: (broken.update(batch.broken), bar.advance(task)),
        )
    gathered = gather_results(own, broken)
    if gathered is None:
        return 0
    results, broken = gathered
    evaluation = evaluate(data.coco, results)

    write_text(out / "detections.json", json.dumps(results))
    write_text(out / "metrics.json", json.dumps({**evaluation.metrics, "class_ap": evaluation.class_ap}))
    paths = dict(zip(data.image_ids, data.paths))
    title = f"{arguments.weights} on {cfg.data.root}"
    write_text(out / "report.html", report_html(evaluation, data.coco, results, paths, title))
    which = "weights" if checkpoint.ema is None else "moving average of the weights"
    say(console, f"{arguments.weights}: {which} after iteration {checkpoint.iteration}")
    for line in data.report.summary():
        say(console, f"validation data: {line}")
    for line in sorted(broken):
        say(console, f"left out, its objects count as missed: {line}")
    console.print(class_table(evaluation))
    say(console, evaluation.table)
    say(console, f"{len(results)} detections in {out / 'detections.json'}; figures in {out / 'metrics.json'}")
    say(console, f"report: {out / 'report.html'}")
    cli.print_result(arguments, {"out": str(out), **evaluation.metrics, "class_ap": evaluation.class_ap})
    return 0


def class_table(evaluation: Evaluation) -> Table:
    """AP of every class; a dash for one without ground truth."""
    table = Table("class", "AP")
    for name, ap in evaluation.class_ap.items():
        table.add_row(name, "-" if ap < 0 else f"{ap:.3f}")
    return table


if __name__ == "__main__":
    cli.run(main)
