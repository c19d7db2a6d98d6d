"""Fuzz what reads files: ``python -m tests.fuzz readers --seconds 600``. Coverage guides it (pip install atheris)."""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from random import Random

import atheris

_GUIDING = [
    "hpcdeq.archive",
    "hpcdeq.config",
    "hpcdeq.documents",
    "hpcdeq.inference.ledger",
    "hpcdeq.models.files",
    "spectral.io.envi",
]

with atheris.instrument_imports(include=_GUIDING):
    from tests.fuzz.contract import BrokenContractError, scratch
    from tests.fuzz.mutations import mutate
    from tests.fuzz.targets import TARGETS

_MOST_CASE_BYTES = 1 << 17
_MOST_ADDRESSES = 12 << 30


def main() -> None:
    """Fuzz one target for a while; keep the first case of every finding, and say what it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="where cases and findings are kept")
    told = parser.parse_args()

    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES, _MOST_ADDRESSES))
    place = scratch()
    target = TARGETS[told.target](place / "files")
    corpus, findings = told.out / told.target, told.out / f"{told.target}-findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        target.run(seed)
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    end, count, known = time.monotonic() + told.seconds, 0, set[str]()

    def one(case: bytes) -> None:
        nonlocal count
        if not case:
            return
        if time.monotonic() > end:
            print(f"{told.target}: {count} cases, {len(known)} findings in {findings}", flush=True)
            shutil.rmtree(place, ignore_errors=True)
            os._exit(1 if known else 0)
        count += 1
        try:
            (findings / "last").write_bytes(case)  # of one that ends the process
            target.run(case)
        except BrokenContractError as error:
            what = str(error).partition(": ")[0]
            if what not in known:
                known.add(what)
                name = hashlib.sha256(what.encode()).hexdigest()[:12]
                (findings / name).write_bytes(case)
                (findings / f"{name}.txt").write_text(
                    f"{target.kinds[case[0] % len(target.kinds)]}: {error}\n"
                )
                print(f"finding {name} ({target.kinds[case[0] % len(target.kinds)]}): {error}", flush=True)

    def change(case: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.3 or not case:
            return bytes(atheris.Mutate(case, most))
        kind = case[:1] if random.random() < 0.95 else random.randbytes(1)
        return (kind + mutate(case[1:], random))[:most]

    flags = [
        f"-max_len={_MOST_CASE_BYTES}",
        "-len_control=0",
        "-rss_limit_mb=0",
        "-malloc_limit_mb=0",
        "-timeout=120",
    ]
    flags += [f"-seed={told.seed}", f"-artifact_prefix={findings}/", "-print_final_stats=0", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
