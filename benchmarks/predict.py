"""Inference of whole detectors, from the bytes of a batch in CPU memory to detections, one image and many at a time.

    python -m benchmarks.predict

times r50_1x, eager and compiled up to the decoded candidates, against torchvision's FCOS with the same thresholds, and
writes benchmarks/results/predict/MACHINE.json and .png after each measurement. One that fails is recorded with its
error; if it is ours, the exit code is 1. Weights are fresh; the class bias of all detectors is shifted so that about a
tenth of the candidates of an image pass the threshold, about as many as in a trained detector.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.detectors import Step, autocast, benchmark_config, make_batch, make_torchvision
from benchmarks.machine import find_device, machine
from benchmarks.predict_report import draw, markdown_table
from benchmarks.rates import measure_steps, median_ms, start_afresh, synchronise
from benchmarks.recording import RESULTS, TOO_LARGE, Results, reason, results_file, significant
from benchmarks.train_step import best_precision
from dwtriton.config.schema import Config
from dwtriton.console.cli import run
from dwtriton.core.points import STRIDES
from dwtriton.data.batch import Batch
from dwtriton.model.detector import build_detector
from dwtriton.model.pixels import PixelDetector, compile_predict

METHODS = ("compiled", "eager", "torchvision", "torchvision compiled")
OURS = ("compiled", "eager")
PASSING_SHARE = 0.1  # of the candidates


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    device = find_device(args.device)
    torch._logging.set_logs(all=logging.ERROR)  # not a line for each graph break of torchvision
    start = time.perf_counter()
    size = (args.height, args.width)
    cfg = benchmark_config(args.cfg, [size], 16, args.precision, "off")
    results = open_results(args)
    for row in (todo := results.missing(planned(args))):
        start_afresh(device)
        row |= measure_row(row["method"], cfg, size, row["batch"], args, device)
        results.add(row)
        results.plot()
    print(f"{markdown_table(results.content)}\n\nwritten to {args.out}, {time.perf_counter() - start:.0f} s")
    return int(any(row["method"] in OURS and row.get("skipped", TOO_LARGE) != TOO_LARGE for row in todo))


def open_results(args: argparse.Namespace) -> Results:
    """Return the file of results, with the rows that are kept."""
    case = {"config": args.cfg, "height": args.height, "width": args.width}
    case |= {"precision": args.precision, "mode": args.mode}
    head = {"machine": machine(torch.device(args.device)), "case": case}
    return Results(args.out, head, ("method", "batch"), draw, args.resume)


def planned(args: argparse.Namespace) -> list[dict]:
    """Return the names of the rows to measure, ours first."""
    return [{"method": method, "batch": images} for method in args.methods for images in args.batches]


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cfg", default="r50_1x", help="config (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument(
        "--batches", nargs="+", type=int, help="images in a batch (default: 1 and 16, 1 and 2 on a CPU)"
    )
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--mode", default="default", help="of torch.compile (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement, at least three batches")
    parser.add_argument("--resume", action="store_true", help="keep rows of the same code, and measure the others")
    parser.add_argument("--out", type=Path, help="JSON file; the plot goes beside it")
    args = parser.parse_args(arguments)
    cuda = args.device == "cuda"
    args.batches = args.batches or ([1, 16] if cuda else [1, 2])
    args.precision = args.precision or best_precision(cuda)
    args.out = args.out or results_file(find_device(args.device), RESULTS / "predict")
    return args


def measure_row(
    method: str, cfg: Config, size: tuple[int, int], images: int, args: argparse.Namespace, device: torch.device
) -> dict:
    """Measure a method with one size of batch; if it fails, the row has the error as `skipped`."""
    print(f"{method}, {images} images ...", flush=True)
    batch = make_batch(size, [0] * images, cfg.head.num_classes, pinned=device.type == "cuda")
    row: dict = {}
    try:
        if method.startswith("torchvision"):
            step, select = torchvision_predict(cfg, batch, size, device, method.endswith("compiled")), None
        else:
            step, select = own_predict(cfg, batch, device, args.mode if method == "compiled" else "off")
        began = time.perf_counter()
        step()
        synchronise(device)
        row["first_s"] = significant(time.perf_counter() - began)
        measured = measure_steps(step, images, device, args.seconds)
        row |= {name: measured[name] for name in ("images_s", "ms", "peak_gb")}
        if select is not None:
            row["select_ms"] = significant(median_ms(select, device, args.seconds / 4))
    except Exception as error:
        row["skipped"] = reason(error)
    print(f"  {row.get('images_s', row.get('skipped'))} images/s", flush=True)
    return row


def own_predict(cfg: Config, batch: Batch, device: torch.device, mode: str) -> tuple[Step, Step]:
    """Return a function that detects in the batch, and one that only selects among its candidates."""
    torch.manual_seed(0)
    detector = build_detector(cfg).to(device, memory_format=torch.channels_last).eval()
    network = PixelDetector(detector, cfg.data)
    predict = compile_predict(network, mode)
    images = batch.images.to(device)
    with torch.inference_mode():
        scores = network.candidates(images, batch.image_sizes).scores
    shift_scores(detector.head.class_conv.bias, scores, cfg.inference.score_threshold)

    def detect():
        with autocast(cfg, device):
            return predict(batch.images, batch.image_sizes)

    with torch.inference_mode():
        candidates = network.candidates(images, batch.image_sizes)
    return detect, lambda: detector.predict(images, batch.image_sizes, candidates=lambda _: candidates)


def torchvision_predict(cfg: Config, batch: Batch, size: tuple[int, int], device: torch.device, compiled: bool) -> Step:
    """Return a function that detects in the batch by torchvision's FCOS."""
    torch.manual_seed(0)
    detector = make_torchvision(cfg, size, device).eval()
    forward = torch.compile(detector) if compiled else detector

    def inputs() -> list[Tensor]:
        return list(batch.images.to(device, non_blocking=True).float().div_(255))

    with torch.inference_mode():
        images, _ = detector.transform(inputs())
        outputs = detector.head(list(detector.backbone(images.tensors).values()))
        scores = (outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).flatten(1)  # [B, P*C]
        scores = scores.topk(min(len(STRIDES) * cfg.inference.candidates_per_level, scores.shape[1])).values
    # its scores are the square roots of these
    shift_scores(detector.head.classification_head.cls_logits.bias, scores, cfg.inference.score_threshold**2)

    def detect():
        with autocast(cfg, device), torch.inference_mode():
            return forward(inputs())

    return detect


def shift_scores(class_bias: Tensor, scores: Tensor, threshold: float) -> None:
    """Shift the class logits until about PASSING_SHARE of the candidates, which now have `scores`, are above."""
    limit = scores.new_tensor(threshold).logit()
    with torch.no_grad():
        class_bias += limit - scores.flatten().quantile(1 - PASSING_SHARE).logit()


if __name__ == "__main__":
    run(main)
