"""Which ENVI header belongs to which data file."""

from __future__ import annotations

from pathlib import Path

_ENDINGS = (".img", ".dat", ".raw", ".bil", ".bip", ".bsq", ".bin", ".envi", ".hyspex", ".cube", "")


def header_of(data: Path) -> Path | None:
    """Return the header beside a data file: ``scene.hdr`` or ``scene.raw.hdr``."""
    for header in (data.with_name(f"{data.name}.hdr"), data.with_suffix(".hdr"), data.with_suffix(".HDR")):
        if header != data and header.is_file():
            return header
    return None


def data_file_of(header: Path) -> Path | None:
    """Return the data file beside a header: ``x.raw`` for ``x.raw.hdr``, else ``x`` with a usual ending."""
    exact = header.with_suffix("")
    if exact.is_file():
        return exact
    beside = {p.name.lower(): p for p in sorted(header.parent.iterdir()) if p.is_file() and p != header}
    return next((beside[name] for e in _ENDINGS if (name := f"{header.stem}{e}".lower()) in beside), None)
