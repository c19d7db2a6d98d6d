"""The project's Markdown, as the tests of the documentation read it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^( *)(`{3,})([^`\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    line: int


class Page:
    """One Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path.relative_to(ROOT))
        self.text = path.read_text()

    @cached_property
    def blocks(self) -> list[Block]:
        """All fenced blocks, in their order."""
        return [
            Block(m[3].strip(), m[4], self.text.count("\n", 0, m.start()) + 1)
            for m in _FENCE.finditer(self.text)
        ]

    @cached_property
    def prose(self) -> str:
        """All but the fenced blocks; lines keep their numbers."""
        return _FENCE.sub(lambda m: "\n" * m[0].count("\n"), self.text)

    @cached_property
    def spans(self) -> list[str]:
        """Inline code."""
        return [
            re.sub(r"\s+", " ", m[2]).strip()
            for m in re.finditer(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", self.prose)
        ]

    @cached_property
    def links(self) -> list[str]:
        """Targets of all Markdown links, outside of code."""
        return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "``", self.prose))

    @cached_property
    def anchors(self) -> set[str]:
        """Anchors of the headings, as GitHub names them."""
        found: list[str] = []
        for heading in re.findall(r"^#{1,6} +(.+?) *#*$", self.prose, re.MULTILINE):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            same = sum(s == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", s) is not None for s in found)
            found.append(f"{slug}-{same}" if same else slug)
        return set(found)


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository: those that git would commit."""
    told = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in sorted(told.stdout.splitlines()) if (ROOT / name).is_file()]


PAGES = [Page(path) for path in tracked("*.md")]


def joined(text: str) -> list[str]:
    """Lines, those that end with a backslash joined with the next."""
    return [line.strip() for line in re.sub(r"\\\n\s*", " ", text).splitlines()]
