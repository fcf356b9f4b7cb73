"""Drawing for the `shapes` data set: outlines of the eight classes, their fills, and textured backgrounds."""

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 4  # outlines are filled at this multiple of the resolution
PLAIN_BELOW = 26  # pixels; smaller objects have plain fills, so that people can tell their class


def _arc(start: float, end: float, radius: float = 1.0, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    angles = np.linspace(start, end, 48)  # radians
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + centre  # [48, 2]


def _star() -> np.ndarray:
    angles = np.arange(10) * np.pi / 5
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.where(np.arange(10) % 2, 0.4, 1.0)[:, None]


def _crescent() -> np.ndarray:
    """A disc without a second one of radius 0.85 shifted right by 0.55: both arcs, tip to tip."""
    radius, offset = 0.85, 0.55
    x = (1 + offset**2 - radius**2) / (2 * offset)  # where the two circles meet
    outer, inner = np.arccos(x), np.pi - np.arccos((offset - x) / radius)
    return np.concatenate([_arc(outer, 2 * np.pi - outer), _arc(-inner, inner - 2 * np.pi, radius, (offset, 0))])


def _cross() -> np.ndarray:
    """A plus sign: the end and the inner corner of one arm, turned four times."""
    half = 0.32  # half of the width of an arm
    arm = np.array([(1, -half), (1, half), (half, half)])
    turn = np.array([[0, 1], [-1, 0]])  # a quarter
    return np.concatenate([arm @ np.linalg.matrix_power(turn, n) for n in range(4)])


_CIRCLE = _arc(0, 2 * np.pi)
# Outline of each class, and its hole if it has one: [N, 2] within the unit disc or a little beyond.
OUTLINES: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
    "oval": (_CIRCLE, None),
    "ring": (_CIRCLE, 0.55 * _CIRCLE),
    "rectangle": (np.array([(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)]), None),
    "triangle": (np.array([(1, 0), (-0.5, 0.87), (-0.5, -0.87)]), None),
    "star": (_star(), None),
    "cross": (_cross(), None),
    "crescent": (_crescent(), None),
    "hourglass": (np.array([(-0.7, -0.9), (0.7, -0.9), (0.12, 0), (0.7, 0.9), (-0.7, 0.9), (-0.12, 0)]), None),
}


class Stamp:
    """One object, cut off at the borders of its image.

    `window` is its position in the image: rows and columns; in it, `alpha` float32 [h, w] is the coverage of each pixel
    and `edge` that of the border line. `mask` bool [H, W] are the pixels of the image that the shape covers at least by
    half; `area` is that of the whole shape, in pixels.
    """

    def __init__(
        self, name: str, centre: np.ndarray, diameter: float, image: np.ndarray, rng: np.random.Generator
    ) -> None:
        angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.25)
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]]) * diameter / 2 @ np.diag([stretch**0.5, stretch**-0.5])
        outline, hole = OUTLINES[name]
        points = outline @ matrix.T + centre
        corner, end = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int)  # of the canvas, (x, y)
        canvas, edge = (Image.new("L", tuple((end - corner) * SUPERSAMPLING)) for _ in range(2))
        line = SUPERSAMPLING * max(1, round(diameter / 24))
        for ring, value in ((outline, 255), (hole, 0)):
            if ring is None:
                continue
            points = [tuple(p) for p in (ring @ matrix.T + centre - corner) * SUPERSAMPLING]
            ImageDraw.Draw(canvas).polygon(points, fill=value)
            ImageDraw.Draw(edge).line([*points, points[0]], fill=255, width=2 * line)

        self.area = _shrink(canvas).sum()
        self.begin, end = np.maximum(corner, 0), np.minimum(end, image.shape[1::-1])
        self.window = slice(self.begin[1], end[1]), slice(self.begin[0], end[0])
        inside = np.concatenate([self.begin - corner, end - corner]) * SUPERSAMPLING
        self.fine = canvas.crop(inside.tolist())  # at SUPERSAMPLING resolution
        self.alpha = _shrink(self.fine)
        self.edge = np.minimum(_shrink(edge.crop(inside.tolist())), self.alpha)
        self.mask = np.zeros(image.shape[:2], dtype=bool)
        self.mask[self.window] = self.alpha >= 0.5

    def box(self) -> np.ndarray:
        """Return the box xyxy, float64 [4], around the part inside the image, covered or not."""
        return np.array(self.fine.getbbox()) / SUPERSAMPLING + np.tile(self.begin, 2)


def _shrink(canvas: Image.Image) -> np.ndarray:
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def paint(image: np.ndarray, stamp: Stamp, plain: bool, rng: np.random.Generator) -> None:
    """Blend an object into `image` float32 [H, W, 3] (0..255) in colours that stand out from what lies below."""
    below = image[stamp.window].reshape(-1, 3)
    colour = contrasting(below.mean(0), rng)
    fill = colour if plain else _texture(colour, contrasting(below.mean(0), rng), *stamp.alpha.shape, rng)
    fill = np.broadcast_to(fill, (*stamp.alpha.shape, 3))
    if rng.random() < 0.5:  # a border line in a darker or lighter tone
        tone = colour * 0.45 if colour.mean() > 110 else colour * 0.4 + 150
        fill = fill + (tone - fill) * stamp.edge[..., None]
    image[stamp.window] += (fill - image[stamp.window]) * stamp.alpha[..., None]


def contrasting(background: np.ndarray, rng: np.random.Generator, candidates: int = 6) -> np.ndarray:
    """The random colour [3], of a few candidates, that is farthest from `background` [3]."""
    colours = rng.uniform(0, 255, (candidates, 3))
    return colours[np.linalg.norm(colours - background, axis=1).argmax()]


def _texture(colour: np.ndarray, other: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A fill [h, w, 3] between two colours: gradient, stripes, checks, speckle or plain."""
    kind = rng.integers(5)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    period = max(6.0, max(height, width) / rng.uniform(3, 6))
    across = _turned(x, y, rng)
    if kind == 0:
        mix = (across - across.min()) / max(np.ptp(across), 1)
    elif kind == 1:
        mix = (across % period < period / 2).astype(float)
    elif kind == 2:
        mix = ((x // (period / 2) + y // (period / 2)) % 2).astype(float)
    elif kind == 3:
        mix = rng.random((height, width)) * 0.6
    else:
        mix = np.zeros((height, width))
    return colour + (other - colour) * (0.6 * mix[..., None])


def draw_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A textured background, float32 [h, w, 3] in 0..255: gradient, pattern, thin strokes, grain."""
    first, second, third = rng.uniform(20, 235, (3, 3)) * 0.6 + rng.uniform(10, 90)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    across = _turned(x, y, rng)
    mix = (across - across.min()) / np.ptp(across)
    image = first + (second - first) * mix[..., None]
    pattern = rng.integers(4)
    if pattern == 0:  # smooth noise
        image = image + (_clouds(height, width, rng.integers(4, 14), rng)[..., None] - 0.5) * rng.uniform(40, 110)
    elif pattern == 1:  # stripes
        waves = np.sin(_turned(x, y, rng) * (2 * np.pi / rng.uniform(6, 40)))
        image = image + waves[..., None] * rng.uniform(6, 22)
    elif pattern == 2:  # soft blotches of a third colour
        blotches = np.clip((_clouds(height, width, rng.integers(4, 9), rng) - 0.5) * 6, 0, 1)
        image = image + (third - image) * (0.5 * blotches[..., None])
    image = _strokes(image, rng)
    grain = rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(1, 7)
    return (image + grain[..., None]).astype(np.float32)


def _turned(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coordinate along a random direction."""
    angle = rng.uniform(0, np.pi)
    return x * np.cos(angle) + y * np.sin(angle)


def _clouds(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise [h, w] in 0..1 with `cells` random values along each side."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _strokes(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw up to six thin lines and curves, which belong to no object."""
    canvas = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(7)):
        start, bend, end = rng.uniform(-0.1, 1.1, (3, 2)) * canvas.size
        t = np.linspace(0, 1, 24)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end  # Bezier, [24, 2]
        colour = tuple(rng.integers(0, 256, 3).tolist())
        draw.line([tuple(p) for p in curve], fill=colour, width=int(rng.integers(1, 3)), joint="curve")
    return np.asarray(canvas, dtype=np.float32)
