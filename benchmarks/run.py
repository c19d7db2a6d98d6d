"""All benchmarks, one after the other: their output is the tables of benchmarks/README.md.

    python benchmarks/run.py --train train.zarr --val val.zarr --runs runs [--qrnn3d-code QRNN3D] [--device cuda]

`runs` holds trained models, as `RUN/model` in `du-fast`, `deq-fast`, `du-full` and `deq-full`. Benchmarks against other libraries
(torchdeq, deepinv, hyde-images, QRNN3D's code) are left out where these are missing, and are named at the end. An hour on 2 cores;
let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from hpcdeq.models import load_model, save_dictionary

_HERE = Path(__file__).parent
_MODELS = ("du-fast", "deq-fast", "du-full", "deq-full")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True, help="archive of clean scenes")
    parser.add_argument("--val", required=True, help="archive of clean scenes that the models have not seen")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--qrnn3d-code", help="folder of QRNN3D's public code")
    parser.add_argument("--device", default="cpu", help="of the maps and scenes; cpu or cuda")
    arguments = parser.parse_args()
    models = {name: arguments.runs / name / "model" for name in _MODELS}
    dictionary = Path(tempfile.mkdtemp()) / "dictionary.safetensors"
    save_dictionary(load_model(models["deq-fast"]).atoms, dictionary, {})
    each = [part for folder in models.values() for part in ("--model", str(folder))]
    fast = ["--model", str(models["deq-fast"]), "--model", str(models["du-fast"])]
    # script, its arguments, the packages it needs
    plan: list[tuple[str, list[str], tuple[str, ...]]] = [
        ("maps.py", ["--device", arguments.device], ()),
        ("maps.py", ["--device", arguments.device, "--size", "1300", "--overlap", "0", "--repeats", "1"], ()),
        ("deq_libraries.py", [], ("torchdeq", "deepinv")),
        ("memory.py", [], ()),
        ("precision.py", [arguments.val, *fast], ()),
        ("mixing.py", [arguments.val, "--model", str(models["deq-full"])], ()),
        ("iterations.py", [arguments.val, *each], ()),
        ("support_ceiling.py", [arguments.val, "--dictionary", str(dictionary)], ()),
        ("patch_stream.py", [arguments.train], ()),
        ("fasthyde.py", [arguments.val], ("hyde",)),
    ]
    if arguments.qrnn3d_code:
        plan.insert(4, ("qrnn3d.py", ["--code", arguments.qrnn3d_code, "--fasthyde"], ("hyde",)))
    left_out = [] if arguments.qrnn3d_code else ["qrnn3d.py (no --qrnn3d-code)"]
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    for script, options, packages in plan:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            left_out.append(f"{script} (pip install {' '.join(missing)})")
            continue
        print(f"\n== {script} {' '.join(options)}", flush=True)
        if subprocess.run([sys.executable, str(_HERE / script), *options]).returncode != 0:
            left_out.append(f"{script} (failed)")
    print("\nleft out: " + (", ".join(left_out) or "nothing"))


if __name__ == "__main__":
    main()
