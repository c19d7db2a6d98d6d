"""The notebook of the documentation runs, and is kept without what it showed somebody."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/notebooks/first_steps.ipynb"


def test_it_is_kept_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
def test_it_runs_and_the_scene_gets_better(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=500, startup_timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    gains = [
        float(line.split(": ")[1].split()[0]) for line in text.splitlines() if "more than before" in line
    ]
    assert len(gains) == 1
    assert gains[0] > 8
    bars = [
        output.data["text/plain"]
        for output in outputs
        if "<progress" in output.get("data", {}).get("text/html", "")
    ]
    assert len(bars) == 2, "one bar for each scene that is denoised"
    assert all(re.fullmatch(r"denoise: (\d+)/\1", bar) for bar in bars), bars
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
