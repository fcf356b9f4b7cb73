"""`dwtriton.explain`: the positive and negative loss weights of an image's objects, as maps and figures."""

from dwtriton.explain.comparison import Comparison, compare
from dwtriton.explain.comparison_figure import draw_comparison
from dwtriton.explain.explanation import Explanation, explain
from dwtriton.explain.figures import draw, draw_strip

__all__ = ["Comparison", "Explanation", "compare", "draw", "draw_comparison", "draw_strip", "explain"]
