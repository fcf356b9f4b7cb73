"""Detect objects in images from Python, print them and draw them.

python examples/detect_from_python.py runs/RUN/best.pt street.jpg --out drawn
"""

import argparse
from pathlib import Path

from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from dwtriton import load_detector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="checkpoint of a run")
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    parser.add_argument("--score", type=float, default=0.3, help="detections score above it (default: 0.3)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the drawn images")
    arguments = parser.parse_args()

    detector = load_detector(arguments.weights)  # on a GPU if there is one; everything it needs is in the file
    images = [Image.open(path).convert("RGB") for path in arguments.images]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path, image, found in zip(arguments.images, images, detector(images, score_threshold=arguments.score)):
        print(f"{path}: {len(found['boxes'])} objects")
        texts = [f"{name} {score:.2f}" for name, score in zip(found["names"], found["scores"].tolist())]
        for text, box in zip(texts, found["boxes"].tolist()):  # xyxy, pixels of the image
            print(f"  {text} at ({', '.join(f'{side:.0f}' for side in box)})")
        drawn = draw_bounding_boxes(pil_to_tensor(image), found["boxes"], texts, colors="orange", width=2)
        to_pil_image(drawn).save(arguments.out / f"{path.stem}.png")


if __name__ == "__main__":
    main()
