"""Draws figures: PNG in light colours, SVG in the colours of the page that contains it."""

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

# (light, dark), distinguishable for colour-blind readers and on either ground. Figures have the light ones. In a page
# these become var(--NAME), so no two may be equal.
COLOURS = {
    "ground": ("#fefefe", "#14181d"),
    "ink": ("#1d2329", "#e8ebee"),
    "soft": ("#59626b", "#a3adb7"),
    "line": ("#d5d9dd", "#3a424a"),
    "c0": ("#0068b0", "#5db8f5"),
    "c1": ("#c94f00", "#ff9b52"),
    "c2": ("#00795a", "#3fd3a4"),
    "c3": ("#a0407f", "#ea9ccb"),
    "c4": ("#7d6200", "#dfc453"),
    "c5": ("#5a4fcf", "#b3acff"),
    "c6": ("#6b7075", "#b6bcc2"),
    "c7": ("#8c1d3f", "#f58aa5"),
}
WIDTH = 9.0  # inches
ROW = 0.34  # inches of a row of dots or bars
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "text.parse_math": False,  # names of classes may hold a $
    "text.color": COLOURS["ink"][0],
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["line"][0],
    "axes.labelcolor": COLOURS["soft"][0],
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOURS["line"][0],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"][0],
    "ytick.color": COLOURS["line"][0],
    "xtick.labelcolor": COLOURS["soft"][0],
    "ytick.labelcolor": COLOURS["soft"][0],
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hsakd_jax",
}


class Curve(NamedTuple):
    """A line with a band.

    Attributes:
      label: at its end.
      colour: a key of `COLOURS`.
      x: positions.
      y: as many; the mean where there are several runs.
      spread: half of the band's height, as many; () for none.
      rings: points to emphasise, (x, y).
    """

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    rings: Sequence[tuple[float, float]] = ()


class Row(NamedTuple):
    """A row of dots or bars.

    Attributes:
      label: to the left.
      colour: a key of `COLOURS`.
      value: a dot, or the end of a bar.
      note: to the right.
      spread: half of the length of a whisker; None for none.
      ring: a second point; None for none.
      others: a point of each of the others that are compared.
    """

    label: str
    colour: str
    value: float
    note: str = ""
    spread: float | None = None
    ring: float | None = None
    others: Sequence[float] = ()


class Picture(NamedTuple):
    """An image with lines of text below it."""

    pixels: np.ndarray  # uint8 [H, W, C]
    lines: Sequence[str]


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(draw)
    def styled(*args: Any, **options: Any) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **options)

    return styled


@_styled
def dots(rows: Sequence[Row], xlabel: str) -> Figure:
    """One row each: a filled dot, a ring, a whisker; the axis need not begin at 0."""
    figure = _figure(0.7 + ROW * len(rows))
    axes = figure.subplots()
    for y, row in enumerate(rows):
        colour = COLOURS[row.colour][0]
        if row.ring is not None:
            axes.plot([row.ring], [y], "o", mfc="none", mec=colour, ms=11, mew=1.3)
        axes.errorbar([row.value], [y], xerr=row.spread, fmt="o", color=colour, ms=6.5, capsize=3)
    axes.margins(x=0.08)
    _name_rows(axes, rows)
    axes.set_xlabel(xlabel)
    return figure


@_styled
def bars(rows: Sequence[Row], xlabel: str, others: Sequence[tuple[str, str]] = (), this: str = "") -> Figure:
    """Bars from 0.

    Args:
      rows: from the top down.
      xlabel: of the axis.
      others: label and colour of each of the points in `Row.others`.
      this: label of the bars, where there are others.
    """
    figure = _figure(0.7 + ROW * len(rows) + 0.3 * bool(others))
    axes = figure.subplots()
    axes.barh(range(len(rows)), [row.value for row in rows], 0.62, color=[COLOURS[row.colour][0] for row in rows])
    for i, (label, colour) in enumerate(others):
        aside = 0.16 * (i - (len(others) - 1) / 2)  # where they are equal, both are seen
        points = [(row.others[i], y + aside) for y, row in enumerate(rows)]
        marker = "Ds^"[i % 3]
        # The ground's colour around it, so that it is seen on a bar.
        axes.plot(
            *zip(*points, strict=True),
            marker,
            color=COLOURS[colour][0],
            mec=COLOURS["ground"][0],
            mew=1.2,
            ms=7.5,
            label=label,
            clip_on=False,
        )
    if others:
        handles, labels = axes.get_legend_handles_labels()
        handles.insert(0, Patch(color=COLOURS[rows[0].colour][0]))
        figure.legend(handles, [this, *labels], loc="outside upper left", ncols=len(others) + 1, handlelength=1.2)
    if min(row.value for row in rows) < 0 < max(row.value for row in rows):
        axes.axvline(0, color=COLOURS["soft"][0], lw=1)
    _name_rows(axes, rows)
    axes.set_xlabel(xlabel)
    if all(isinstance(row.value, int) for row in rows):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


@_styled
def curves(
    panels: Sequence[tuple[str, Sequence[Curve]]],
    xlabel: str,
    ylabel: str,
    columns: int = 1,
    height: float = 0.0,
    zero: bool = False,
    log: bool = False,
) -> Figure:
    """Lines, each with its name at its end.

    Args:
      panels: title and curves of each.
      xlabel: of all panels.
      ylabel: of each panel.
      columns: panels in a row.
      height: of a panel in inches; 0 for one that suits the columns. It grows with the names.
      zero: whether the vertical axis begins at 0, or below where values do.
      log: whether it is logarithmic.
    """
    down = -(-len(panels) // columns)
    height = max(height or (3.6 if columns == 1 else 2.5), 0.9 + 0.21 * max(len(lines) for _, lines in panels))
    figure = _figure(down * height)
    grid = figure.subplots(down, columns, squeeze=False)
    for axes, (title, lines) in zip(grid.flat, panels, strict=False):
        axes.set_title(title)
        for i, curve in enumerate(lines):
            _draw(axes, curve, dashed=any(curve.colour == other.colour for other in lines[:i]))
        axes.margins(x=0.03)
        if zero and min(min(curve.y) for curve in lines) >= 0:
            tops = [np.add(curve.y, curve.spread if len(curve.spread) else 0).max() for curve in lines]
            axes.set_ylim(0, 1.06 * max(tops) or None)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        _name_ends(axes, lines, height)
        axes.set_ylabel(ylabel)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    return figure


@_styled
def gallery(pictures: Sequence[Picture], columns: int = 6) -> Figure:
    """Images in a grid, scaled up without smoothing."""
    down = -(-len(pictures) // columns)
    figure = _figure(2.05 * down)
    grid = figure.subplots(down, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (pixels, lines) in zip(grid.flat, pictures, strict=False):
        axes.imshow(pixels if pixels.shape[-1] > 1 else pixels[..., 0], "gray", vmin=0, vmax=255, interpolation="none")
        words = "\n".join(short(line, 34) for line in lines)
        axes.text(0, -0.04, words, transform=axes.transAxes, va="top", fontsize=6.5)
    return figure


def png(figure: Figure) -> bytes:
    """A file for papers and slides."""
    return _saved(figure, "png", dpi=160)


def svg(figure: Figure, name: str, title: str) -> str:
    """An element for a page that sets the custom properties `--NAME` of `COLOURS`.

    Args:
      figure: made by a function above.
      name: unique in the page.
      title: for readers who can't see it.
    """
    text = _saved(figure, "svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view
    text = re.sub(r"<svg[^>]*>", f'<svg {view[0]} role="img" aria-label="{html.escape(title)}">', text, count=1)
    # One page contains several figures.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for key, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{key})")
    return text


def short(text: str, most: int = 28) -> str:
    """Text of at most `most` characters; the middle is left out, since paths differ at their ends."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor=COLOURS["ground"][0])


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names of classes may be in any script
        figure.savefig(file, format=kind, facecolor="none" if kind == "svg" else "auto", **options)
    return file.getvalue()


def _name_rows(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [short(row.label, 44) for row in rows], color=COLOURS["ink"][0])
    axes.tick_params("y", length=0, pad=9)  # clear of a point at 0
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    for y, row in enumerate(rows):
        axes.text(1.015, y, row.note.replace("-", "\N{MINUS SIGN}"), transform=axes.get_yaxis_transform(), va="center")


def _draw(axes: Any, curve: Curve, dashed: bool) -> None:
    colour = COLOURS[curve.colour][0]
    if len(curve.spread):
        low, high = (np.add(curve.y, sign * np.asarray(curve.spread)) for sign in (-1, 1))
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.18, lw=0)
    axes.plot(curve.x, curve.y, "--" if dashed else "-", color=colour)
    shown = slice(None) if len(curve.x) < 8 else slice(-1, None)
    axes.plot(curve.x[shown], curve.y[shown], "o", color=colour, ms=5, clip_on=False)
    if curve.rings:
        axes.plot(*zip(*curve.rings, strict=True), "o", mfc="none", mec=colour, ms=10, mew=1.3)


def _name_ends(axes: Any, lines: Sequence[Curve], height: float) -> None:
    """Names to the right of the axes, as near to the ends of their lines as they fit."""
    axes.set_ylim(axes.get_ylim())
    ends = sorted(lines, key=lambda curve: curve.y[-1])
    heights = (axes.transScale + axes.transLimits).transform([(curve.x[-1], curve.y[-1]) for curve in ends])[:, 1]
    places = _spread(heights.tolist(), 0.21 / (height - 0.8))
    for curve, place in zip(ends, places, strict=True):
        axes.annotate(
            short(curve.label),
            (curve.x[-1], curve.y[-1]),
            (1.03, place),
            textcoords="axes fraction",
            color=COLOURS[curve.colour][0],
            va="center",
            zorder=1,  # below the points
            arrowprops={"arrowstyle": "-", "color": COLOURS["line"][0], "lw": 0.8, "shrinkA": 1, "shrinkB": 4},
        )


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved apart to `gap`, within 0 to 1 where there is room."""
    found = list(places)
    for i in range(1, len(found)):
        found[i] = max(found[i], found[i - 1] + gap)
    ceiling = max(1.0, gap * (len(found) - 1))
    for i in reversed(range(len(found))):
        found[i] = min(found[i], ceiling)
        ceiling = found[i] - gap
    return found
