"""Pages: every link leads somewhere, every page is in the menu, and nothing names a page or a file that does not exist."""

from __future__ import annotations

import fnmatch
import importlib
import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, ROOT, Page, tracked

BY_PATH = {page.path: page for page in PAGES}
FOLDERS = "benchmarks|configs|docs|hpcdeq|launch|slurm|tests"
ADDED_BY_THE_READER = re.compile(r"# (hpcdeq/\S+\.py)$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_and_anchor_is_there(page: Page) -> None:
    broken = []
    for link in page.links:
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            assert target.startswith(("https://", "mailto:")), f"{link}: https only"
            continue
        path = (page.path.parent / target).resolve() if target else page.path
        if not path.exists() or (anchor and anchor not in BY_PATH[path].anchors):
            broken.append(link)
    assert not broken, broken


def listed(page: Path) -> list[Path]:
    """Pages that the toctrees of a page name."""
    found = []
    for block in BY_PATH[page].blocks:
        if block.language != "{toctree}":
            continue
        for line in block.text.split("\n"):
            if re.fullmatch(r"[\w./*\[\]-]+", line):
                pattern = str((page.parent / f"{line}.md").resolve())
                named = [path for path in BY_PATH if fnmatch.fnmatch(str(path), pattern)]
                assert named, f"{page}: {line} is not there"
                found += named
    return found


def test_every_page_is_in_the_menu_once() -> None:
    menu = listed(DOCS / "index.md") + listed(DOCS / "api" / "index.md")
    assert len(menu) == len(set(menu))
    on_the_site = {path for path in BY_PATH if DOCS in path.parents} | {
        ROOT / "benchmarks/README.md",
        ROOT / "hpcdeq/weights/README.md",
        ROOT / "CHANGELOG.md",
    }
    assert set(menu) | {DOCS / "index.md"} == on_the_site


def test_every_page_that_is_written_by_hand_is_told_of_on_the_first_page() -> None:
    index = BY_PATH[DOCS / "index.md"]
    told = {(DOCS / link.partition("#")[0]).resolve() for link in index.links}
    missing = {path.name for path in listed(index.path)} - {path.name for path in told}
    assert not missing


def test_nothing_names_a_file_of_the_project_that_is_not_there() -> None:
    ours = {"slurm/profiles/my-cluster.yaml", "slurm/profiles/NAME.yaml"}  # that people make
    missing = []
    for path in tracked("*.md", "*.py", "*.sh", "*.yaml", "*.toml", "*.sbatch"):
        text = path.read_text()
        if path.suffix == ".md":
            text = ADDED_BY_THE_READER.sub("", text)
            names = re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w\.(?:py|md|sh|yaml|sbatch|in)\b", text)
        else:  # data of tests and code may look like a path
            names = re.findall(r"(?<![\w/.-])docs/[\w/-]+\.(?:md|sh)\b", text)
        missing += [(str(path), name) for name in names if name not in ours and not (ROOT / name).exists()]
    assert not missing


def test_the_api_reference_holds_every_public_package() -> None:
    named = {
        module
        for page in PAGES
        if page.path.parent == DOCS / "api"
        for module in re.findall(r"automodule:: (\S+)", page.text)
    }
    for module in named:
        importlib.import_module(module)
    public = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for path in tracked("hpcdeq/*__init__.py")
        if "__all__" in path.read_text()
    }
    assert public <= named
