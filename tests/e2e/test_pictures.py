"""The pictures of the documentation can be made again, and are small."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "docs/pictures"
MAX_BYTES = 150_000


@pytest.mark.slow
def test_one_script_makes_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make", make)  # where its dataclass looks for it
    spec.loader.exec_module(make)
    monkeypatch.setattr(make, "SIZE", 36)
    make.main(tmp_path)
    made = {path.name: Image.open(path).size for path in tmp_path.iterdir()}
    kept = {path.name: Image.open(path).size for path in FOLDER.glob("*.png")}
    assert made == kept, "those that are kept are not those that the script makes"


def test_they_are_small_and_shown() -> None:
    root = FOLDER.parents[1]
    pages = "".join(page.read_text() for page in (root / "README.md", *(root / "docs").glob("*.md")))
    for picture in FOLDER.glob("*.png"):
        assert picture.stat().st_size < MAX_BYTES
        assert f"pictures/{picture.name})" in pages, f"no page shows {picture.name}"
