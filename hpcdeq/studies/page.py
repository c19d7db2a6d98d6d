"""Self-contained HTML pages, whose pictures and styles are in the file, and figures beside them; written in one step."""

from __future__ import annotations

import base64
import io
import uuid
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpcdeq import __version__
from hpcdeq.errors import ConfigError, MissingExtraError

RGB_NM = (640.0, 550.0, 460.0)
_DPI = 160


@dataclass(frozen=True)
class Figure:
    """A picture: a data URI and what it shows."""

    title: str
    uri: str
    caption: str


def require_libraries(purpose: str, *libraries: str, extra: str = "report") -> None:
    """Raise MissingExtraError if a page cannot be made: call it before the long work."""
    for library in libraries:
        if find_spec(library) is None:
            raise MissingExtraError(library, extra, purpose)


def check_page(path: Path) -> None:
    """Raise ConfigError if no page can be written there, as it is a folder: call it before the long work."""
    if path.is_dir():
        raise ConfigError(f"--html {path} is a folder; name a file, such as {path / 'report.html'}")


def render_page(template: str, **values: Any) -> str:
    """Return a page: a template of this package, filled in; all values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hpcdeq.studies"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **values)


def write_page(path: Path, page: str) -> None:
    """Write the page in one step, so that nobody opens half of it."""
    write_whole(path, page.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid.uuid4().hex}.part")
    aside.write_bytes(content)
    aside.replace(path)


def blank_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """Return an empty figure of matplotlib, of such a size in inches, and its axes by row and column."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False)
    for plot in axes.flat:
        plot.spines[["top", "right"]].set_visible(False)
        plot.tick_params(labelsize=8)
    return canvas, axes


def write_figure(path: Path, canvas: Any) -> Path:
    """Write a figure of matplotlib as PNG and SVG; return the path of the SVG."""
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
        write_whole(path.with_suffix(f".{kind}"), buffer.getvalue())
    return path.with_suffix(".svg")


def rgb_bands(wavelengths: NDArray[np.float64] | None, bands: int) -> tuple[list[int], str]:
    """Bands shown as red, green and blue: nearest to 640, 550, 460 nm, or spread evenly if none is known."""
    if wavelengths is None:
        chosen = [bands * 3 // 4, bands // 2, bands // 4]
        return chosen, f"bands {', '.join(str(b + 1) for b in chosen)} as red, green, blue"
    chosen = [int(np.argmin(np.abs(wavelengths - nm))) for nm in RGB_NM]
    return chosen, f"{', '.join(f'{wavelengths[b]:.0f}' for b in chosen)} nm as red, green, blue"


def white_of(rgb: NDArray[np.float32], valid: NDArray[np.bool_]) -> float:
    """Return the value that is shown white: 99.5 % of the pixels of a scene ``(3, y, x)`` are darker."""
    return max(float(np.quantile(rgb[:, valid], 0.995)) if valid.any() else 1.0, 1e-6)


def typical_points(clean: NDArray[np.float32], valid: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Up to three pixels (y, x): a dim, a middling and a bright one, each with neighbours like itself."""
    brightness = clean.mean(axis=0)
    gy, gx = np.gradient(brightness)
    roughness = np.hypot(gy, gx) / np.maximum(brightness, 1e-3)
    points = []
    for quantile in (0.35, 0.7, 0.95):
        if not valid.any():
            break
        level = np.quantile(brightness[valid], quantile)
        misfit = np.abs(brightness - level) / max(level, 1e-3) + roughness
        y, x = np.unravel_index(np.argmin(np.where(valid, misfit, np.inf)), misfit.shape)
        points.append((int(y), int(x)))
    return points


def false_colours(rgb: NDArray[np.float32], white: float, valid: NDArray[np.bool_]) -> str:
    """Data URI of ``(3, y, x)`` values, as `stretched` shows them."""
    return jpeg(stretched(rgb, white, valid))


def stretched(rgb: NDArray[np.float32], white: float, valid: NDArray[np.bool_]) -> NDArray[Any]:
    """Return ``(3, y, x)`` values as they are shown, (y, x, 3) in [0, 1]: gamma 2.2, grey where there is no data."""
    shown = np.clip(rgb / white, 0.0, 1.0) ** (1 / 2.2)
    return np.where(valid, shown, 0.5).transpose(1, 2, 0)


def middle(shape: tuple[int, ...], edge: int) -> tuple[Any, slice, slice]:
    """Index of at most ``edge x edge`` pixels in the middle of arrays whose last two axes are (y, x), of this shape."""
    y0, x0 = (max(0, (size - edge) // 2) for size in shape)
    return np.s_[..., y0 : y0 + edge, x0 : x0 + edge]


def jpeg(rgb: NDArray[Any]) -> str:
    """Data URI of (y, x, 3) values in [0, 1]."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(255 * rgb).astype(np.uint8)).save(buffer, "JPEG", quality=92, subsampling=0)
    return data_uri("image/jpeg", buffer.getvalue())


def png(rgb: NDArray[np.uint8]) -> str:
    """Data URI of a drawing of few colours, (y, x, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Put content into a link to itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
