"""Figures as inline SVG that follows the page: its font, its colours, light or dark.

matplotlib draws with the fixed colours of `sim.report.style`; here they become CSS variables of the page.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from sim.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIABLES = {
    style.BLUE: "--blue",
    style.ORANGE: "--orange",
    style.GREEN: "--green",
    style.RED: "--red",
    style.SKY: "--sky",
    style.PURPLE: "--purple",
    style.GREY: "--grey",
    style.BLACK: "--ink",
    "#444444": "--ink2",
    "#999999": "--axis",
    "#E4E4E4": "--grid",
}
_COLORS = re.compile("|".join(re.escape(c) for c in VARIABLES), re.IGNORECASE)
_RC: Any = {
    **style.RC,
    "font.size": 9.5,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "svg.fonttype": "none",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}
WIDTH, HEIGHT = 5.0, 2.25


def new_figure(height: float = HEIGHT) -> Figure:
    """An empty figure of one column of the page; call within `drawing`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height))


class drawing:
    """Within: matplotlib's settings are those of the page's figures, and nothing else's."""

    def __enter__(self) -> None:
        import matplotlib as mpl

        self._context = mpl.rc_context()
        self._context.__enter__()
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element.

    Args:
        figure: drawn within `drawing`.
        name: unlike the other figures' of the page, so that ids differ.
        label: what it shows, for those who do not see it.
    """
    import matplotlib as mpl
    from markupsafe import escape

    sink = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": f"kvpool-{name}"}):
        figure.savefig(sink, format="svg", metadata={"Date": None}, transparent=True)
    text = sink.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
    text = _COLORS.sub(lambda m: f"var({VARIABLES[_known(m.group(0))]})", text)
    box = re.search(r'viewBox="([^"]*)"', text)
    size = box.group(1) if box else ""
    head = f'<svg class="figure" viewBox="{size}" role="img" aria-label="{escape(label)}">'
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _known(color: str) -> str:
    return next(c for c in VARIABLES if c.lower() == color.lower())
