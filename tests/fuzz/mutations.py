"""Files made hostile: bytes, the tree of a JSON document, or the lines of a text changed at random."""

from __future__ import annotations

import json
from random import Random
from typing import Any

_BYTES = [
    *(
        b"\0",
        b"\xff",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\0\0\0\0",
        b"\x01\0\0\0",
        b"\xff\xff\xff\x7f",
        b"\x80",
    ),
    *(b"\n", b"{", b"}", b"[", b",", b"-1", b"nan", b"inf", b"1e400", b"99999999999999999999", b"\xc3\x28"),
]
_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        65,
        1 << 20,
        1 << 31,
        1 << 40,
        1 << 63,
        -(1 << 63),
        10**30,
        0.5,
        -0.0,
        1e308,
    ),
    *(
        float("nan"),
        float("inf"),
        "",
        "0",
        "x",
        "..",
        "../../x",
        "/etc/passwd",
        "a\0b",
        "a\nb",
        "\ud800",
        "é" * 300,
    ),
    *(
        [],
        {},
        [[]],
        {"": None},
        [1] * 300,
        [-1, -1, -1],
        {"name": "pickle"},
        "object",
        "<M8[s]",
        "V9",
        "f4",
        ">u2",
        "float16",
    ),
    *(
        "bytes",
        "gzip",
        "blosc",
        "zstd",
        "vlen-utf8",
        "sharding_indexed",
        "transpose",
        "numcodecs.pickle",
        "U5",
    ),
]
_LINES = [
    *(
        "a: &a [x, x, x, x, x, x, x, x, x]",
        "b: &b [*a, *a, *a, *a]",
        "run: *a",
        "seed: ${seed}",
        "run: ${oc.env:HOME}",
    ),
    *(
        "seed: ???",
        "training: {lr: .nan}",
        "training: {lr: 1e400}",
        "seed: 2001-99-99",
        "seed: 0x",
        "<<: *a",
        "<<: {seed: 3}",
    ),
    *(
        "!!python/object/apply:os.system [id]",
        "seed: !!python/name:os.system",
        "? [a, b]\n: c",
        "1: 2",
        "model: {1: 2}",
    ),
    *(
        "run: " + "9" * 5000,
        "run: " + "[" * 3000,
        "run: " + "{a: " * 2000,
        "--- x",
        "%YAML 9",
        "\0",
        "\ud800",
        "é: ü",
    ),
    *(
        "model: {solver: {kind: picard, kind: anderson}}",
        "training: {support_sizes: [1, x]}",
        "noise: []",
        "model: null",
    ),
    *(
        "run: ${run}",
        "run: ${a.b[0].${c}}",
        "data: {train: ${data.val}, val: ${data.train}}",
        "run: &r\n  x: *r",
        "= x",
        "seed=.inf",
    ),
    *(
        "nodes: x",
        "slurm: {a: [b]}",
        "partition: 'a b'",
        "time: 99999999999999999999",
        "mem: 1e3",
        "runs: {../x: {}}",
    ),
    *(
        "runs: {a: {after: a}}",
        "settings: {x.y: 1}",
        "config: /etc/passwd",
        "runs: []",
        "about: [1]",
        "dictionary: {atoms: -1}",
    ),
]


def mutate(content: bytes, random: Random) -> bytes:
    """Return content with one to four changes."""
    for _ in range(random.randint(1, 4)):
        content = random.choice(_WAYS)(content, random)
    return content


def _change_bytes(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    length = random.choice((0, 1, 2, 4, 8, 100))
    piece = random.choice(_BYTES) if random.random() < 0.7 else random.randbytes(random.choice((1, 2, 4, 8)))
    return content[:at] + piece + content[at + (len(piece) if random.random() < 0.7 else length) :]


def _flip(content: bytes, random: Random) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[random.randrange(min(len(changed), random.choice((64, 400, 10**9))))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] if random.random() < 0.5 else content[:at] + content[at + random.choice((1, 4, 50)) :]


def _repeat(content: bytes, random: Random) -> bytes:
    a, b = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return content[:b] + content[a:b][:1000] * random.choice((1, 2, 50)) + content[b:]


def _change_tree(content: bytes, random: Random) -> bytes:
    """Of a JSON document."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return _change_bytes(content, random)
    holder = [tree]
    places = list(_places(holder))
    parent, key = random.choice(places)
    way = random.random()
    if way < 0.6:
        parent[key] = random.choice(_VALUES)
    elif way < 0.7:
        parent[key] = random.choice(places)[0]
    elif way < 0.8 and parent is not holder:
        del parent[key]
    elif way < 0.9 and isinstance(parent, dict):
        parent[str(random.choice(_VALUES))] = parent.pop(key)
    else:
        parent[key] = [parent[key]]
        if random.random() < 0.1:
            return b"[" * 100_000
    try:
        return json.dumps(holder[0]).encode()
    except (ValueError, RecursionError):  # it holds itself
        return b"{}"


def _places(tree: Any) -> Any:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _change_lines(content: bytes, random: Random) -> bytes:
    lines = content.split(b"\n")
    at = random.randrange(len(lines) + 1)
    way = random.random()
    if way < 0.5:
        lines.insert(at, random.choice(_LINES).encode(errors="surrogatepass"))
    elif way < 0.8 and at < len(lines):
        key, colon, _ = lines[at].partition(b":" if b":" in lines[at] else b"=")
        value = (
            random.choice(_LINES).partition(":")[2] if random.random() < 0.5 else str(random.choice(_VALUES))
        )
        lines[at] = key + colon + b" " + value.encode(errors="surrogatepass")
    elif at < len(lines):
        del lines[at]
    return b"\n".join(lines)


_WAYS = [_change_bytes, _flip, _cut, _repeat, _change_tree, _change_tree, _change_lines, _change_lines]
