"""Figures as SVG that takes its colours from the page, light or dark: no scripts, no style attributes, no fonts."""

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from known_core.figures.style import HALO, PALETTE, plain

_ROLES = {light: role for role, (light, _) in PALETTE.items()}
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_UNUSED = {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}
_DRAWING = threading.RLock()  # matplotlib's settings are the process's
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "known",  # the same figure gives the same bytes
    "text.parse_math": False,  # strangers' names may have dollar signs
    "font.family": ["DejaVu Sans"],  # matplotlib's own, and wider than what a page uses: text never needs more room
    "axes.unicode_minus": True,
    "path.simplify": True,
}

ElementTree.register_namespace("", _SVG)


def _variables(dark: bool) -> str:
    return "".join(f"--{role}:{colours[dark]};" for role, colours in PALETTE.items())


CSS = (
    f".known-figure{{{_variables(False)}color-scheme:light dark}}"
    f"@media screen and (prefers-color-scheme:dark){{.known-figure{{{_variables(True)}}}}}"
    f':root[data-theme="light"] .known-figure{{{_variables(False)}}}'
    f'@media screen{{:root[data-theme="dark"] .known-figure{{{_variables(True)}}}}}'
    '.known-figure text{font-family:system-ui,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}'
    + "".join(f".f-{role}{{fill:var(--{role})}}.s-{role}{{stroke:var(--{role})}}" for role in PALETTE)
    + f".{HALO} text{{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}}"
)


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib set up for these figures; one thread at a time."""
    with _DRAWING, mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # the page's fonts may have it
        yield


def to_svg(figure: Figure, name: str, title: str, description: str, *, standalone: bool) -> str:
    """The same figure gives the same text.

    Args:
        figure: drawn within :func:`drawing`, in colours of the palette alone.
        name: prefix of every id, so that several figures can be on one page.
        title, description: for those who do not see it.
        standalone: whether :data:`CSS` is inside; a page that shows several has it once.
    """
    drawn = io.StringIO()
    with drawing():
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    root = ElementTree.fromstring(drawn.getvalue())  # noqa: S314 - what matplotlib has just written
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', drawn.getvalue()))
    for parent in root.iter():
        for child in [child for child in parent if child.tag in _UNUSED]:
            parent.remove(child)
        _restyle(parent, name, used)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": width,
        "height": height,
        "class": "known-figure",
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-description",
        "stroke-linejoin": "round",
    }
    for place, (tag, words) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(
            f"{{{_SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'description'}"}
        )
        element.text = plain(words, 20_000)
        root.insert(place, element)
    if standalone:
        style = ElementTree.Element(f"{{{_SVG}}}style")
        style.text = CSS
        root.insert(2, style)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _restyle(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Colours become classes, the other styles attributes: a strict content security policy lets both pass."""
    classes = []
    style = element.attrib.pop("style", "")
    for declaration in filter(None, map(str.strip, style.split(";"))):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key in ("fill", "stroke") and value.startswith("#"):
            classes.append(f"{key[0]}-{_ROLES[value.lower()]}")
        elif key != "font-family":
            element.set(key, value)
    identity = element.attrib.pop("id", "")
    if identity == HALO:
        classes.append(HALO)
    elif identity in used:
        element.set("id", f"{name}-{identity}")
    if classes:
        element.set("class", " ".join(classes))
    if link := element.attrib.pop(_LINK, ""):
        element.set("href", f"#{name}-{link.removeprefix('#')}")
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("url(#", f"url(#{name}-"))
    if re.fullmatch(r"rotate\(-?0 [-\d. ]+\)", element.get("transform", "")):
        del element.attrib["transform"]
    if "d" in element.attrib:
        element.set("d", _DECIMALS.sub(lambda match: f"{float(match[0]):.2f}", " ".join(element.attrib["d"].split())))
    if element.text is not None and not element.text.strip():
        element.text = None
    element.tail = None
