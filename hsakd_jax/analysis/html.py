"""The HTML of the report's page: its frame, words and figures, all in the page's own file."""

import base64
import html
import io
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSS = """
:root { color-scheme: light dark; %s }
@media (prefers-color-scheme: dark) { :root { %s } }
body { background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 66rem; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; text-wrap: balance; }
h1 span { white-space: nowrap; }
h1:not(:first-child) { margin-top: 4rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 48rem; }
.soft, figcaption, summary { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: 1rem 0 .6rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: normal; }
th:first-child, td:first-child, .left { text-align: left; }
figure { margin: .5rem 0 0; }
figcaption { font-size: .9rem; max-width: 48rem; }
figure svg { display: block; height: auto; min-width: 36rem; width: 100%%; }
figure svg text { font-family: inherit !important; }
pre { background: color-mix(in srgb, var(--line) 35%%, transparent); overflow-x: auto; padding: .6rem; font-size: .8rem;
  white-space: pre-wrap; }
pre span { display: inline-block; overflow-wrap: anywhere; }
.mistakes { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); margin: .8rem 0; }
.mistakes div { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
.mistakes img { display: block; image-rendering: pixelated; margin-bottom: .3rem; width: 100%%; }
"""


class Album:
    """Figures of a page, each of which can be had as PNG too.

    Args:
      pictures: takes what draws each as PNG, by a name that is unique in the page.
      prefix: of these names.
    """

    def __init__(self, pictures: dict[str, Callable[[], bytes]], prefix: str = ""):
        self._pictures, self._prefix = pictures, prefix

    def keep(self, name: str, figure: "Figure") -> str:
        """Keeps a figure for its PNG, without a place in the page; gives its full name."""
        from hsakd_jax.analysis import plots

        first = name = self._prefix + name
        others = (f"{first}-{i}" for i in itertools.count(2))
        while name in self._pictures:
            name = next(others)
        self._pictures[name] = lambda: plots.png(figure)
        return name

    def figure(self, name: str, title: str, caption: str, figure: "Figure", level: str = "h2") -> list[str]:
        """Keeps a figure; gives the lines of its HTML, heading and caption included."""
        from hsakd_jax.analysis import plots

        words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        picture = plots.svg(figure, self.keep(name, figure), escape(title))
        return [f"<{level}>{escape(title)}</{level}>", f'<figure>{words}<div class="wide">{picture}</div></figure>']


def document(title: str, body: list[str]) -> str:
    """A whole page, in ASCII, so that it is the same in whatever encoding it is written."""
    from hsakd_jax.analysis import plots

    light, dark = (" ".join(f"--{key}: {both[i]};" for key, both in plots.COLOURS.items()) for i in (0, 1))
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS % (light, dark)}</style>\n</head>\n<body>\n"
    )
    page = head + "\n".join(body) + "\n</body>\n</html>\n"
    return page.encode("ascii", "xmlcharrefreplace").decode()


def escape(text: Any) -> str:
    """Text as it may stand in a page, between tags or in quotes."""
    return html.escape(str(text))


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text, of a class of the page's style."""
    return f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>"


def image(pixels: Any, words: str) -> str:
    """An image in the page itself.

    Args:
      pixels: uint8 [H, W, 1 or 3].
      words: for those who can't see it.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] > 1 else pixels[..., 0]).save(file, "png")
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}" alt="{escape(words)}">'
