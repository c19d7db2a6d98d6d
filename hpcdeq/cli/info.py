"""``hpcdeq info``: what an archive holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hpcdeq.archive import Scene

_NOISE_WINDOW = 260  # pixels: enough for a steady estimate, little to read


def info(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Folder of the archive.")],
    scene: Annotated[
        list[str] | None, typer.Argument(metavar="SCENE", help="Scenes to show; all if none is named.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for a script.")] = False,
) -> None:
    """Show the scenes of an archive.

    Their shape, type, wavelengths, full scale, size, masked pixels and estimated noise.
    """
    from hpcdeq.archive import open_archive
    from hpcdeq.console import result, result_json, say, table
    from hpcdeq.errors import PartialFailureError, SceneError

    opened = open_archive(archive)
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    for name in scene or opened.names():
        try:
            rows.append(_facts(opened[name]))
        except SceneError as error:
            bad.append(str(error))
    if as_json:
        result_json({"archive": str(archive), "scenes": rows, "unreadable": bad})
    elif rows:
        result(
            table(
                ("scene", "bands", "rows", "columns", "dtype", "nm", "full scale", "MB", "masked", "sigma"),
                map(_row, rows),
            )
        )
    else:
        say(f"no readable scenes in {archive}")
    for line in bad:
        say(line)
    if bad:
        raise PartialFailureError(f"{len(bad)} scenes cannot be read; they are listed above")


def _facts(scene: Scene) -> dict[str, Any]:
    nm = scene.wavelengths
    attributes = scene.attributes
    return {
        "scene": scene.name,
        "shape": list(scene.shape),
        "dtype": str(scene.dtype),
        "wavelengths_nm": None if nm is None else [float(nm.min()), float(nm.max())],
        "full_scale": attributes.get("full_scale", 1.0 / scene.scale_factor),
        "full_scale_from": attributes.get("full_scale_from"),
        "bytes": sum(f.stat().st_size for f in scene.path.rglob("*") if f.is_file()),
        "masked_pixels": _masked(scene),
        "noise_sigma_255": _noise(scene),
        "source": attributes.get("source"),
        "source_format": attributes.get("source_format"),
        "source_sha256": attributes.get("source_sha256"),
    }


def _masked(scene: Scene) -> int:
    return sum(int((~scene.valid_mask(w)).sum()) for w in scene.shards()) if scene.has_mask else 0


def _noise(scene: Scene) -> float:
    """Mean over the bands of the noise level in the middle of the scene, in units of 1/255."""
    from hpcdeq.noise import estimate_sigma
    from hpcdeq.tiling import Window

    _, height, width = scene.shape
    h, w = min(height, _NOISE_WINDOW), min(width, _NOISE_WINDOW)
    y, x = (height - h) // 2, (width - w) // 2
    return float(estimate_sigma(scene.read(Window(y, y + h, x, x + w))).mean() * 255.0)


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    nm = facts["wavelengths_nm"]
    return (
        facts["scene"],
        *map(str, facts["shape"]),
        facts["dtype"],
        f"{nm[0]:g}-{nm[1]:g}" if nm else "unknown",
        f"{facts['full_scale']:g}",
        f"{facts['bytes'] / 1e6:.1f}",
        str(facts["masked_pixels"]),
        f"{facts['noise_sigma_255']:.2f}",
    )
