"""The configuration as typed models, whose defaults are the published `r50_1x`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dwtriton.config.kinds import (
    COMPILE_MODES,
    COMPILE_SWITCH,
    MAX_PIXELS,
    BoxWeight,
    Buckets,
    Fraction,
    MayChange,
    NonNegativeFloat,
    NonNegativeInt,
    Pixels,
    PositiveFloat,
    PositiveInt,
    Real,
    Section,
    Seed,
    Span,
    Workers,
)


class ShapesConfig(Section):
    """Size of the generated `shapes` data set, which is drawn into `data.root` on first use."""

    train_images: int = Field(2000, strict=True, gt=0, le=10**6, description="images to train on")
    val_images: int = Field(300, strict=True, gt=0, le=10**6, description="images to validate with")
    seed: Seed = Field(0, description="of everything that is drawn")
    crowded: bool = Field(False, description="16 to 30 objects in every image, which are smaller")


class DataConfig(Section):
    """Location of the images, and how training batches are made of them (docs/recipe.md#data)."""

    root: MayChange[Path | None] = Field(None, description="folder in COCO layout; --data sets it")
    train_images: str = Field("train2017", description="folder of the training images, inside root")
    train_annotations: str = Field("annotations/instances_train2017.json", description="inside root")
    val_images: str = Field("val2017", description="folder of the validation images, inside root")
    val_annotations: str = Field("annotations/instances_val2017.json", description="inside root")
    shapes: ShapesConfig | None = Field(None, description="generate the shapes data set at root if root does not exist")
    crowd: Literal["background", "ignore", "train"] = Field(
        "background",
        description="crowd regions in training: background, as in the released code; ignore: no negative loss inside; "
        "train: objects like all others, in evaluation too, for data whose exporter marks every mask as crowd",
    )
    background: bool = Field(False, description="train on images without an annotation too; the released code does not")
    exif: Literal["auto", "apply", "ignore"] = Field(
        "auto",
        description="whether annotations are of images turned as their EXIF orientation says (apply) or as they lie in "
        "the file (ignore); auto: found out from the annotated sizes",
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        strict=True,
        gt=0,
        le=MAX_PIXELS,
        description="larger images are left out, before they are decoded; as Pillow does",
    )
    short_side: Span = Field(
        (800, 800), description="lowest and highest short side of training images in pixels, drawn uniformly"
    )
    scale_per: Literal["image", "batch"] = Field(
        "image",
        description="draw the short side for each image, as the released code does, or for a batch, whose images are "
        "then of like aspect: less padding (docs/performance.md#batches-of-several-scales)",
    )
    long_side: Pixels = Field(1333, description="longest side allowed in training, pixels")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip in training")
    vertical_flip: Fraction = Field(0.0, description="probability of a vertical flip in training, as for aerial images")
    colour: Fraction = Field(
        0.0,
        description="strength of random changes of brightness, contrast, saturation and hue in training, 0 to 1; "
        "none as published",
    )
    class_weights: dict[str, BoxWeight] = Field(
        {},
        description="of classes by name, 1 where absent: multiplies the weights of their boxes in training "
        "(docs/method.md#weights-of-boxes)",
    )
    mean: tuple[Real, Real, Real] = Field((123.675, 116.28, 103.53), description="of R, G, B in 0..255")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field((58.395, 57.12, 57.375), description="of R, G, B")
    size_divisor: int = Field(
        32, strict=True, gt=0, le=2**16, multiple_of=32, description="batches are zero-padded to a multiple of this"
    )
    buckets: Buckets = Field(
        4,
        description="sizes [height, width] in pixels to which training batches are padded, or how many to choose for "
        "the data; torch.compile makes one graph for each. 0: pad each batch to its largest image",
    )
    batch_size: int = Field(
        16, strict=True, gt=0, le=2**16, description="images per optimiser step, over all GPUs and micro-batches"
    )
    workers: MayChange[Workers] = Field(
        "auto", description="loader processes per rank; auto: 0 without a GPU (docs/data-loading.md#how-many-workers)"
    )


class BackboneConfig(Section):
    """ResNet or ResNeXt (torchvision's layout, stride on the 3x3 convolution; docs/recipe.md#model)."""

    depth: Literal[18, 34, 50, 101] = Field(50, description="layers of the ResNet")
    resnext: Literal["none", "32x4d", "32x8d", "64x4d"] = Field(
        "none", description="groups x width of ResNeXt; torchvision has 32x4d for depth 50, 32x8d and 64x4d for 101"
    )
    deformable: bool = Field(False, description="DCNv2 in layer2, layer3 and layer4; needs depth 50 or 101")
    weights: str = Field("IMAGENET1K_V1", description="that (downloaded), a torchvision state-dict file, or none")
    frozen_stages: int = Field(
        1, strict=True, ge=0, le=4, description="0: nothing; 1: conv1, bn1, layer1; n: up to layer n"
    )
    frozen_statistics: bool = Field(True, description="batch norms use their running statistics in training too")


class HeadConfig(Section):
    """Feature pyramid, and the dense head that its levels share (docs/recipe.md#model)."""

    num_classes: int = Field(80, strict=True, gt=0, le=10**5, description="categories of the data")
    channels: int = Field(256, strict=True, gt=0, le=4096, description="of the pyramid and of the towers")
    finest_stride: Literal[4, 8] = Field(
        8,
        description="of the levels, P3 to P7; 4: P2 to P7, for objects of few pixels, with four times the points",
    )
    convs: int = Field(4, strict=True, ge=0, le=32, description="convolutions in each of the two towers")
    groups: PositiveInt = Field(32, description="of the group norms; divides channels")
    refine: bool = Field(False, description="box refinement: each side is sampled again at a learned offset")
    deformable: bool = Field(False, description="DCNv2 in the last convolution of both towers")


class FCOSConfig(Section):
    """Settings of `losses.FCOSLoss`."""

    center_radius: PositiveFloat = Field(1.5, description="strides from the centre of a box to its positive points")


class ATSSConfig(Section):
    """Settings of `losses.ATSSLoss`."""

    topk: int = Field(
        9, strict=True, gt=0, le=10**4, description="nearest points of each level that are candidates of a box"
    )
    anchor_scale: PositiveFloat = Field(8.0, description="side of a point's anchor in strides")
    box_weight: NonNegativeFloat = Field(2.0, description="factor of loss_bbox")


class SimOTAConfig(Section):
    """Settings of `losses.SimOTALoss`."""

    center_radius: PositiveFloat = Field(2.5, description="strides from the centre of a box to its candidates")
    candidate_topk: int = Field(
        10, strict=True, gt=0, le=10**4, description="IoUs whose sum is the number of a box's points"
    )
    iou_weight: NonNegativeFloat = Field(3.0, description="factor of -ln IoU in the cost")
    cls_weight: NonNegativeFloat = Field(1.0, description="factor of the cross entropy in the cost")
    box_weight: NonNegativeFloat = Field(5.0, description="factor of loss_bbox")


class TaskAlignedConfig(Section):
    """Settings of `losses.TaskAlignedLoss`. YOLOv8 has alpha 0.5, beta 6 and topk 10."""

    alpha: PositiveFloat = Field(1.0, description="exponent of the score")
    beta: PositiveFloat = Field(6.0, description="exponent of the IoU")
    topk: int = Field(13, strict=True, gt=0, le=10**4, description="best aligned points of a box")
    box_weight: NonNegativeFloat = Field(2.0, description="factor of loss_bbox")


class AblationConfig(Section):
    """Settings of `losses.DualWeightAblationLoss`. The defaults change nothing of Dual Weighting."""

    negative_weight: Literal["iou", "score", "complement"] = Field(
        "iou", description="inside boxes; iou: m s^2, the method's; score: s^2, without the IoU; complement: 1 - w_pos"
    )
    soft_prior: bool = Field(True, description="Gaussian centre prior; false: the prior thresholded at 0.3")
    beta: PositiveFloat = Field(5.0, description="exponent of the localisation score in the positive weight")
    mu: PositiveFloat = Field(5.0, description="exponent of t in the numerator of the positive weight")
    mu_sum: PositiveFloat = Field(3.0, description="exponent of t in its denominator")
    gamma_iou: PositiveFloat = Field(2.0, description="exponent of the IoU in the negative weight")
    gamma_score: PositiveFloat = Field(2.0, description="exponent of the score in the negative weight")


class LossConfig(Section):
    """The assigner and its loss. `backend` and `soft_prior` belong to dual_weight, the three weights also to ablations.

    Their losses are multiplied by their weights before they are summed and reported.
    """

    assigner: Literal["dual_weight", "fcos", "atss", "simota", "tal", "dual_weight_ablation"] = Field(
        "dual_weight", description="who gives points to boxes (docs/assigners.md); all but the first have a section"
    )
    backend: Literal["auto", "triton", "torch"] = Field("auto", description="auto: triton on a GPU, torch on a CPU")
    soft_prior: bool = Field(True, description="Gaussian centre prior; false: the prior thresholded at 0.3")
    weight_cls_pos: NonNegativeFloat = Field(1.0, description="of the positive classification loss")
    weight_loc: NonNegativeFloat = Field(1.0, description="of the localisation loss")
    weight_cls_neg: NonNegativeFloat = Field(1.0, description="of the negative classification loss")
    fcos: FCOSConfig = FCOSConfig()
    atss: ATSSConfig = ATSSConfig()
    simota: SimOTAConfig = SimOTAConfig()
    tal: TaskAlignedConfig = TaskAlignedConfig()
    dual_weight_ablation: AblationConfig = AblationConfig()


class OptimizerConfig(Section):
    """Optimiser and its constants (docs/recipe.md#optimiser)."""

    kind: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    lr: PositiveFloat = Field(0.01, description="for a batch of 16 images; scaled linearly with data.batch_size")
    momentum: Fraction = Field(0.9, description="sgd only")
    weight_decay: NonNegativeFloat = Field(1e-4, description="never applied to weights and biases of norms")
    clip_norm: NonNegativeFloat = Field(0.0, description="largest norm of all gradients together; 0: no clipping")


class ScheduleConfig(Section):
    """Length of the run and its learning rate: linear warm-up, times steps or a half cosine down to zero."""

    epochs: PositiveInt = Field(12, description="passes over the training images")
    kind: Literal["step", "cosine"] = Field("step", description="step: drops at milestones; cosine: half a cosine to 0")
    milestones: tuple[PositiveInt, ...] = Field((8, 11), description="0-based epochs at whose start the rate drops")
    gamma: Fraction = Field(0.1, description="factor of each drop")
    warmup_iterations: NonNegativeInt = Field(
        1000, description="in which the rate rises; a tenth of the run or less, and never all of it"
    )
    warmup_start: Fraction = Field(0.001, description="factor of the rate in the first iteration")


class TrainConfig(Section):
    """How a run computes, and how often it logs, saves and evaluates. An iteration is one optimiser step.

    Each epoch ends with a checkpoint, the last one with an evaluation.
    """

    seed: Seed = Field(0, description="of weights, order and augmentation")
    weights: Path | None = Field(None, description="checkpoint to start from, not backbone.weights; --weights sets it")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="autocast of backbone, pyramid and towers; auto: bfloat16 if the hardware has it, or float32",
    )
    compile: MayChange[Annotated[Literal["auto", "off", *COMPILE_MODES], COMPILE_SWITCH]] = Field(
        "auto",
        description="mode of torch.compile; true: default; auto: default on a GPU if the run ends sooner so, or off; "
        "reduce-overhead: with CUDA graphs, for few images",
    )
    compile_ahead: MayChange[bool] = Field(True, description="compile for every bucket before the first step")
    deterministic: MayChange[bool] = Field(
        True,
        description="cuDNN's deterministic convolutions, chosen by its heuristics; false: for each size of batch, the "
        "fastest of all in a trial",
    )
    accumulate: PositiveInt = Field(1, description="micro-batches per optimiser step; they share data.batch_size")
    activation_checkpointing: MayChange[bool] = Field(False, description="less memory, more time in the backward pass")
    ema_decay: float = Field(
        0.0, strict=True, ge=0, lt=1, description="decay of an EMA of the weights, to evaluate; 0: no EMA"
    )
    log_every: MayChange[PositiveInt] = Field(50, description="iterations per line, if the console is not a terminal")
    checkpoint_every: MayChange[PositiveInt] = Field(1000, description="iterations between checkpoints")
    keep_every: MayChange[NonNegativeInt] = Field(0, description="epochs between those kept as epoch-N.pt; 0: none")
    evaluate_every: MayChange[PositiveInt] = Field(1, description="epochs between evaluations")
    tensorboard: MayChange[bool] = Field(False, description="write event files; needs the package tensorboard")


class InferenceConfig(Section):
    """Image size and post-processing in every evaluation and every command that detects (docs/recipe.md#testing)."""

    short_side: Pixels = Field(800, description="short side of the resized image, pixels")
    long_side: Pixels = Field(1333, description="longest side allowed, pixels; it may make the short side shorter")
    score_threshold: Fraction = Field(0.05, description="detections have a higher score")
    candidates_per_level: PositiveInt = Field(1000, description="highest-scoring (point, class) pairs taken per level")
    nms_iou: Fraction = Field(0.6, description="of two boxes of a class with a higher IoU, NMS drops the lower-scoring")
    max_detections: PositiveInt = Field(100, description="per image, highest-scoring first")
    compile: MayChange[Annotated[Literal["off", *COMPILE_MODES], COMPILE_SWITCH]] = Field(
        "off", description="mode of torch.compile, with dynamic image sizes; true: default. Pays for many images"
    )


class Config(Section):
    """A whole run. Every default is the value of the published `r50_1x`."""

    description: MayChange[str] = Field("", description="what the config is, for lists")
    published_ap: MayChange[Real | None] = Field(None, description="COCO val2017 box AP of the paper's release")
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
