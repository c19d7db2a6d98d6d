#!/usr/bin/env bash
# Build the documentation as a site of static pages: bash docs/build.sh. Sets up what it needs first; any warning is an error.
# HPCDEQ_VENV: as for launch/setup.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

bash launch/setup.sh docs
"${HPCDEQ_VENV:-.venv}/bin/python" -m sphinx -q -W --keep-going -b html -c docs -d build/doctrees . build/docs
echo '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">' >build/docs/index.html
echo "docs: the site is in build/docs; open build/docs/docs/index.html"
