"""What a report is made of: HTML of tables, bars, pictures and galleries, all in one file."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.io import encode_jpeg

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: .2em; } h2 { font-size: 1.15em; margin: 2em 0 .5em; }
p.note, td.note { color: #666; } p.note { max-width: 52em; } img { max-width: 100%; }
table { border-collapse: collapse; } th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }
th { font-weight: 600; } th:first-child, td:first-child, td.note, td.bar { text-align: left; }
td.bar { width: 180px; } td.bar div { background: #4c78a8; height: .8em; }
table.matrix { font-size: 12px; } table.matrix th, table.matrix td { border: 1px solid #eee; padding: .25em .5em; }
table.matrix td { min-width: 1.8em; text-align: center; } table.matrix th { font-weight: normal; text-align: right; }
table.matrix tr:first-child th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
.row { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; } .row.top { align-items: flex-start; }
figure { margin: 0; width: min-content; min-width: 160px; } figcaption { font-size: 12px; overflow-wrap: anywhere; }
figure img { max-width: none; display: block; }
.blank { width: 220px; height: 220px; background: #eee; color: #666; display: grid; place-items: center; }
.key { display: inline-block; width: 1.4em; height: 3px; vertical-align: middle; margin-right: .4em; }
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML, or whole `<td>`."""
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"] if any(head) else []
    for row in rows:
        cells = [cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def number(value: float) -> str:
    """A dash for -1, where there was nothing to measure."""
    return "&ndash;" if value < 0 else f"{value:.3f}"


def bar(share: float) -> str:
    """A cell with a bar of so much of its width."""
    return f'<td class=bar><div style="width:{min(1.0, max(0.0, share)):.1%}"></div></td>'


def explanation(text: str) -> str:
    """A cell that says what its row means."""
    return f"<td class=note>{html.escape(text)}</td>"


def note(content: str) -> str:
    """A paragraph beside the results; `content` is HTML."""
    return f"<p class=note>{content}</p>"


def plot(figure: Figure) -> str:
    """A matplotlib figure as an image."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return _image(buffer.getvalue(), "png")


def photograph(pixels: Tensor | None) -> str:
    """An image, uint8 [3, h, w]; a grey square for None."""
    if pixels is None:
        return "<div class=blank>no readable file</div>"
    return _image(encode_jpeg(pixels, 85).numpy().tobytes(), "jpeg")


def captioned(picture: str, caption: str) -> str:
    """A picture with a line of plain text below."""
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"


def gallery(figures: Sequence[str]) -> str:
    """Captioned pictures in rows."""
    return f'<div class="row top">{"".join(figures)}</div>'


def _image(content: bytes, kind: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode("ascii")}" alt="">'
