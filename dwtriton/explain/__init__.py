"""`dwtriton.explain`: the positive and negative loss weights of an image's objects, as maps and figures."""

from dwtriton.explain.explanation import Explanation, explain
from dwtriton.explain.figures import draw, draw_strip

__all__ = ["Explanation", "draw", "draw_strip", "explain"]
