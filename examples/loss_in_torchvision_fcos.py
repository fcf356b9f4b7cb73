"""Train torchvision's FCOS by Dual Weighting: its network, its resizing and its state dict, with another loss.

    python examples/loss_in_torchvision_fcos.py                    200 steps on drawn rectangles, minutes on a CPU
    python examples/loss_in_torchvision_fcos.py --steps 20

docs/use-the-loss.md explains the module; with real data, replace `draw_batch` by the batches of your own loader.
"""

import argparse

import torch
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn

from dwtriton import DualWeightLoss, postprocess

CLASSES = ("red", "green", "blue")
STRIDES = (8, 16, 32, 64, 128)  # of the levels P3 to P7


class DualWeightFCOS(nn.Module):
    """torchvision's FCOS trained by Dual Weighting; called as torchvision's detectors are."""

    def __init__(self, fcos):
        super().__init__()
        self.fcos = fcos
        self.loss = DualWeightLoss(STRIDES)

    def forward(self, images, targets=None):
        batch, targets = self.fcos.transform(images, targets)
        outputs = self.outputs(batch.tensors)
        if self.training:
            return self.loss(*outputs, targets)
        detections = postprocess(*outputs, batch.image_sizes, strides=STRIDES)
        return self.fcos.transform.postprocess(detections, batch.image_sizes, [image.shape[1:] for image in images])

    def outputs(self, images):
        levels = list(self.fcos.backbone(images).values())
        sizes = [level.shape[2:] for level in levels]
        flat = self.fcos.head(levels)  # [B, points of all levels, channels]
        cls_logits, sides, objectness = (
            [part.mT.unflatten(2, size) for part, size in zip(flat[name].split([s.numel() for s in sizes], 1), sizes)]
            for name in ("cls_logits", "bbox_regression", "bbox_ctrness")
        )
        return cls_logits, [side.float() * stride for side, stride in zip(sides, STRIDES)], objectness


def draw_batch(size: int, side: int) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Return images [3, side, side] with a rectangle of one colour each, and their targets."""
    images, targets = [], []
    for _ in range(size):
        label = int(torch.randint(len(CLASSES), ()))
        width, height = torch.randint(side // 4, side // 2, (2,)).tolist()
        left, top = int(torch.randint(side - width, ())), int(torch.randint(side - height, ()))
        image = 0.2 * torch.rand(3, side, side)
        image[label, top : top + height, left : left + width] = 1
        images.append(image)
        box = [float(left), float(top), float(left + width), float(top + height)]
        targets.append({"boxes": torch.tensor([box]), "labels": torch.tensor([label])})
    return images, targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    parser.add_argument("--side", type=int, default=128, help="of the images, pixels (default: 128)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    sides = {"min_size": arguments.side, "max_size": arguments.side}
    detector = DualWeightFCOS(fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=len(CLASSES), **sides))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-4)
    for step in range(1, arguments.steps + 1):
        losses = detector(*draw_batch(4, arguments.side))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if step % 10 == 0 or step == arguments.steps:
            print(f"step {step}:", ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))

    images, targets = draw_batch(3, arguments.side)
    for target, found in zip(targets, detector.eval()(images)):
        print(f"{CLASSES[target['labels'][0]]} at {target['boxes'][0].tolist()}: found", end=" ")
        best = zip(found["labels"][:1].tolist(), found["boxes"][:1].round().tolist())
        print(", ".join(f"{CLASSES[label]} at {box}" for label, box in best) or "nothing")


if __name__ == "__main__":
    main()
