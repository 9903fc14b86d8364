"""Random files for the readers of GGUF headers and presets files: each file is read, or refused with the documented
error, within its bounds of time and memory.

`run` makes files for some time. `guided` has the search that follows the code that a file reaches; the tests use
hypothesis with `target`.
"""

from __future__ import annotations

import random
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_corral.common.base.errors import ConfigError
from llama_corral.common.hub import gguf_header
from llama_corral.common.hub.gguf_header import GgufError, read_header
from llama_corral.presets.ini import read_presets

DEMO = Path(__file__).resolve().parents[2] / "presets" / "demo"
SLOW_S = 2.0
"""No file of the fuzzer's size takes as long as this."""
LARGEST = 1 << 16
LARGE_MB = 64
TEXT, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
COUNTS = (0, 1, 2, 1023, 1024, 1025, 2**20, 2**23, 2**31, 2**32, 2**60, 2**63, 2**64 - 1)
LINES = (
    *(
        "[*]",
        "[a]",
        "[a]\n[a]",
        "[",
        "]",
        "[]",
        "[a",
        "[a]]",
        "[group:g]",
        "[group:]",
        "[a] ; c",
        "a",
        "=",
        "a=",
        "=a",
        "a = b",
    ),
    *(
        "model = x",
        "model",
        "temp = 1",
        "temp = x",
        "ctx-size = 99999999999999999999",
        "alias = a,b,,c",
        "tags = ,",
        "base = a",
    ),
    *(
        'model = "a\\n"',
        'model = "a',
        "cmd = a ${PORT} $",
        "cmd = '",
        "group = g",
        "swap = true",
        "swap = x",
        "; c",
        "# c",
    ),
    *(
        "ttl = -1",
        "pin = true",
        "version = 1",
        "unknown-key = 1",
        "LLAMA_ARG_CTX_SIZE = 1",
        "c = 5",
        "\tindented = 1",
        "${here}",
    ),
    *(
        "hf-repo = a/b:c:d",
        "lora-scaled = a:b",
        "override-tensor = (",
        "logit-bias = 1+",
        "tensor-split = 1,,2",
        "hooks = {",
    ),
    *(
        "model = " + "x" * 5000,
        "\x0bx = 1",
        "a\x85b = 1",
        "model = \udcff",
        "model = \x00",
        "[\u2028]",
        "\ufeff[a]",
        "a = b = c",
    ),
)


class FileFault(AssertionError):
    """A reader did something else than to read or to refuse a file."""


@dataclass(frozen=True)
class Format:
    name: str
    check: Callable[[bytes], int]
    """Reads the file; returns how much of it was understood. Raises FileFault."""
    seeds: Callable[[], list[bytes]]
    pieces: tuple[bytes, ...]


def guarded(read: Callable[[Path], int], refusals: tuple[type[Exception], ...]) -> Callable[[bytes], int]:
    def check(data: bytes) -> int:
        with tempfile.NamedTemporaryFile(prefix="corral-fuzz-") as file:
            file.write(data)
            file.flush()
            began = time.process_time()
            try:
                understood = read(Path(file.name))
            except refusals as error:
                if not str(error):
                    raise FileFault("refused without a reason") from error
                understood = 0
            except Exception as error:
                raise FileFault(f"{type(error).__name__}: {error}") from error
            if (seconds := time.process_time() - began) > SLOW_S:
                raise FileFault(f"{len(data)} bytes took {seconds:.1f} s")
            return understood

    return check


def _header(path: Path) -> int:
    gguf_header._read_cached.cache_clear()
    header = read_header(path)
    return 1 + len(header.metadata) + len(header.lengths) + len(header.tensors)


def _presets(path: Path) -> int:
    file = read_presets(path, lambda _: None)
    return 1 + len(file.sections) + len(file.global_layer) + sum(len(section.layer) for section in file.sections)


def gguf_text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def random_gguf(chance: random.Random) -> bytes:
    """Return a file whose parts are valid, except that some counts, types and lengths are random."""
    keys, tensors = chance.randrange(6), chance.randrange(4)

    def count(real: int) -> int:
        return chance.choice(COUNTS) if chance.random() < 0.1 else real

    out = b"GGUF" + struct.pack("<IQQ", chance.choice((2, 3, 3, 3, 1, 4)), count(tensors), count(keys))
    for number in range(keys):
        name = chance.choice((b"general.architecture", b"general.alignment", b"a.b", b"", b"\xff", b"k%d" % number))
        kind = chance.choice((*SCALARS, TEXT, TEXT, ARRAY, ARRAY, 13, 255))
        out += gguf_text(name) + struct.pack("<I", kind)
        if kind == TEXT:
            out += struct.pack("<Q", count(5)) + b"llama"
        elif kind == ARRAY:
            inner = chance.choice((TEXT, 4, 9, 7, 99))
            items = [gguf_text(b"ab")] * 3 if inner == TEXT else [struct.pack("<I", 7)] * 3
            out += struct.pack("<IQ", inner, count(3)) + b"".join(items)
        else:
            out += struct.pack(SCALARS.get(kind, "<Q"), chance.choice((0, 1)))
    for number in range(tensors):
        shape = [count(chance.choice((1, 32, 256))) for _ in range(chance.choice((0, 1, 2, 4, 5)))]
        out += gguf_text(b"t%d" % number) + struct.pack("<I", count(len(shape)) & 0xFFFFFFFF)
        out += b"".join(struct.pack("<Q", size) for size in shape)
        out += struct.pack("<IQ", chance.choice((0, 1, 2, 8, 12, 39, 200)), count(32 * number))
    return out + bytes(chance.randrange(64))


def random_presets(chance: random.Random) -> bytes:
    ends = chance.choice(("\n", "\r\n", "\r", "\n\n"))
    lines = [chance.choice(LINES) for _ in range(chance.randrange(1, 12))]
    return ends.join(lines).encode("utf-8", "surrogateescape" if chance.random() < 0.9 else "replace")


def edited(chance: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    """Return a file with a few random edits."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(made) + 1)
        pick = chance.random()
        if pick < 0.3 and made:
            made[at % len(made)] = chance.randrange(256)
        elif pick < 0.5:
            made[at : at + 8] = struct.pack("<Q", chance.choice(COUNTS))
        elif pick < 0.7:
            made[at:at] = chance.choice(pieces)
        elif pick < 0.85:
            del made[at : at + chance.choice((1, 8, 100))]
        else:
            other = chance.randrange(len(made) + 1)
            made[at:at] = made[other : other + 50]
    return bytes(made[:LARGEST])


GGUF = Format(
    "gguf",
    guarded(_header, (GgufError,)),
    lambda: [path.read_bytes()[:LARGEST] for path in sorted(DEMO.glob("*.gguf"))],
    (gguf_text(b"general.alignment") + struct.pack("<II", 4, 0), gguf_text(b"a") + struct.pack("<IIQ", 9, 8, 2**62)),
)
INI = Format(
    "ini",
    guarded(_presets, (ConfigError,)),
    lambda: [path.read_bytes() for path in sorted(DEMO.glob("*.ini"))],
    tuple(line.encode("utf-8", "surrogateescape") + b"\n" for line in LINES),
)
FORMATS = {form.name: form for form in (GGUF, INI)}


def any_file(chance: random.Random, form: Format, seeds: Sequence[bytes]) -> bytes:
    made = random_gguf(chance) if form is GGUF else random_presets(chance)
    pick = chance.random()
    if pick < 0.4:
        return made
    return edited(chance, made if pick < 0.8 or not seeds else chance.choice(seeds), form.pieces)


def run(form: Format, seconds: float, seed: int, tell: Callable[[str], None] = print) -> int:
    """Read random files for some time. Return the number of different faults."""
    chance = random.Random(seed)
    seeds = form.seeds()
    faults: dict[str, bytes] = {}
    files = understood = 0
    tracemalloc.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = any_file(chance, form, seeds)
        files += 1
        tracemalloc.reset_peak()
        try:
            understood += bool(form.check(data))
            if (peak := tracemalloc.get_traced_memory()[1]) > LARGE_MB << 20:
                raise FileFault(f"{len(data)} bytes took {peak >> 20} MB")
        except FileFault as fault:
            kind = "".join(sign for sign in str(fault) if not sign.isdigit())[:80]
            if kind not in faults:
                faults[kind] = data
                tell(f"{form.name}: {fault}\n  {data[:2000]!r}")
    tracemalloc.stop()
    tell(f"{form.name}: {files} files, {understood} of them valid, {len(faults)} faults")
    return len(faults)
