"""docs/extending.md: its examples, put into a copy of the package as the page says, do what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import DOCS, ROOT, Page

PAGE = Page(DOCS / "extending.md")
DRIVER = """
import json, sys
for line, code in json.loads(sys.stdin.read()):
    exec(compile("\\n" * line + code, "docs/extending.md", "exec"), {"__name__": "example"})
"""
# Beyond what the page shows: configurations and model files hold the new kinds.
KEPT = """
from pathlib import Path
import torch
from hpcdeq.config import dump_yaml, load_train_config
from hpcdeq.models import SparseDenoiser, load_model, save_model

solver = ["model.solver.kind=momentum", "model.adjoint.solver.kind=momentum"]
kinds = ["model.prior.kind=bottleneck", *solver, "training.engine.kind=plain"]
config = load_train_config(None, ["data.train=train.zarr", *kinds])
Path("config.yaml").write_text(dump_yaml(config))
assert load_train_config(Path("config.yaml"), []) == config
save_model(SparseDenoiser(config.model, torch.nn.functional.normalize(torch.rand(31, 64), dim=0)), Path("model"), {})
assert load_model("model").settings == config.model
"""


def apply(text: str, change: str) -> str:
    """Make a change that is shown as lines that stay, lines that go (-) and lines that come (+)."""
    lines = change.splitlines()
    old = "\n".join(line[1:] for line in lines if line[:1] in ("", " ", "-"))
    new = "\n".join(line[1:] for line in lines if line[:1] in ("", " ", "+"))
    assert text.count(f"\n{old}\n") == 1, (
        f"this must be in the file once, and is {text.count(old)} times:\n{old}"
    )
    return text.replace(f"\n{old}\n", f"\n{new}\n")


def extend(package: Path) -> None:
    """Add to a copy of the package all that the page adds."""
    for block in PAGE.blocks:
        named = re.match(r"# (hpcdeq/\S+\.py)\n", block.text)
        if named is None:
            continue
        path, content = package / named[1], block.text[named.end() :]
        if block.language == "diff":
            path.write_text(apply(path.read_text(), content))
        else:
            assert not path.exists(), f"{named[1]} is there already"
            path.write_text(content)


def test_every_example_runs_in_a_copy_of_the_package_that_was_changed_as_the_page_says(
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "hpcdeq", tmp_path / "hpcdeq", ignore=shutil.ignore_patterns("__pycache__"))
    extend(tmp_path)
    trials = [
        (block.line, block.text)
        for block in PAGE.blocks
        if block.language == "python" and not block.text.startswith("# hpcdeq/")
    ]
    assert len(trials) == 4
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([*trials, (0, KEPT)]),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
