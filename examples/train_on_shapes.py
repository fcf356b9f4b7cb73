"""Train a small detector on generated images, then draw the weights by which it learned the objects of one of them.

    python examples/train_on_shapes.py --out runs/example                                  minutes on a CPU
    python examples/train_on_shapes.py --out runs/example --set schedule.epochs=2          shorter

The images are drawn into OUT/data, the run is in OUT/run, and the picture is OUT/weights.png.
"""

import argparse
from pathlib import Path

from rich.console import Console

from dwtriton import load_config, load_detector
from dwtriton.data.prepare import prepare_validation
from dwtriton.explain import draw, explain
from dwtriton.train.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for data, run and picture")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the config")
    arguments = parser.parse_args()

    cfg = load_config("shapes", arguments.set, data_root=arguments.out / "data")
    evaluation = Trainer(cfg, arguments.out / "run", Console()).fit()
    print(evaluation.table)

    ready = load_detector(arguments.out / "run" / "best.pt")
    images = prepare_validation(ready.config)
    sample = next(images[i] for i in range(len(images)) if images.box_count(i))  # the first with objects
    explanation = explain(ready, sample)
    for number, name in enumerate(explanation.names[label] for label in explanation.labels.tolist()):
        weights = explanation.weights.pos[:, number]  # [P], of the points of all levels
        print(f"{name}: {int((weights > 0.01).sum())} points weigh over 0.01 as positives, all {weights.sum():.2f}")
    draw(explanation).savefig(arguments.out / "weights.png")
    print(f"picture: {arguments.out / 'weights.png'}")


if __name__ == "__main__":
    main()
