#!/usr/bin/env bash
# Build what a release is made of into dist/, and check it:
#
#   bash launch/release.sh [PYTHON]...
#
# The source and the wheel are built, the wheel from the source, and their content is compared with what git tracks. Each PYTHON, such as
# python3.13, is then given an empty environment with the wheel in it, which runs the demo (some minutes each).
# HPCDEQ_PYTHON: a Python with hpcdeq[dev] (default: python3). HPCDEQ_DIST: where to build (default: dist).
# To release: give CHANGELOG.md's "Unreleased" the version and the day, CITATION.cff the version, commit, run this, tag, and begin "Unreleased" anew.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${HPCDEQ_PYTHON:-python3}
dist=$(realpath -m "${HPCDEQ_DIST:-dist}")

rm -f "$dist"/hpcdeq-*
"$python" -m build --no-isolation --outdir "$dist" . >/dev/null
"$python" - "$dist" <<'PYTHON'
import subprocess, sys, tarfile, zipfile
from pathlib import Path

from hpcdeq import __version__ as version

dist = Path(sys.argv[1])
tracked = set(subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.split())


def same(what, found, wanted):
    if found != wanted:
        sys.exit(f"release: {what}: missing {sorted(wanted - found)}, not wanted {sorted(found - wanted)}")
    print(f"release: {what}: {len(found)} files, as they should be")


with zipfile.ZipFile(dist / f"hpcdeq-{version}-py3-none-any.whl") as wheel:
    about = f"hpcdeq-{version}.dist-info/"
    entries = wheel.read(f"{about}entry_points.txt").decode()
    found = set(wheel.namelist())
same(
    "wheel",
    found,
    {file for file in tracked if file.startswith("hpcdeq/")}
    | {about + name for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")},
)
assert "hpcdeq = hpcdeq.cli:main" in entries, entries
with tarfile.open(dist / f"hpcdeq-{version}.tar.gz") as source:
    found = {name.partition("/")[2] for name in source.getnames()}
left_out = (".ci/", "benchmarks/", ".pre-commit-config.yaml")
same("source", found, {file for file in tracked if not file.startswith(left_out)} | {"PKG-INFO"})
if f"\n## {version}" not in Path("CHANGELOG.md").read_text():
    print(f"release: CHANGELOG.md has no {version} yet: good for a trial, not for a release")
PYTHON

for given in "$@"; do
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    "$given" -m venv "$scratch/venv"
    pip=("$scratch/venv/bin/python" -m pip install -qq --disable-pip-version-check)
    # As launch/setup.sh does: this torch first, and alone. Of the rest the newest, which is what people get.
    "${pip[@]}" "$(grep '^torch==' constraints.txt)"
    "${pip[@]}" "$(echo "$dist"/*.whl)[report]"
    said=$(cd "$scratch" && venv/bin/hpcdeq --version)
    (cd "$scratch" && OMP_WAIT_POLICY=passive venv/bin/hpcdeq demo)
    echo "release: the wheel works with $("$given" --version): $said"
    rm -rf "$scratch"
done
