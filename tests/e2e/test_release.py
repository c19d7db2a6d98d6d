"""launch/release.sh: what it builds is what git tracks. (With a Python as argument it also runs the demo, which takes minutes.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hpcdeq

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_packages_hold_what_they_should(tmp_path: Path) -> None:
    environment = os.environ | {"HPCDEQ_PYTHON": sys.executable, "HPCDEQ_DIST": str(tmp_path / "dist")}
    done = subprocess.run(
        ["bash", str(ROOT / "launch/release.sh")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "release: wheel: " in done.stdout
    version = hpcdeq.__version__
    assert sorted(p.name for p in (tmp_path / "dist").iterdir()) == [
        f"hpcdeq-{version}-py3-none-any.whl",
        f"hpcdeq-{version}.tar.gz",
    ]
