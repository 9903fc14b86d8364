"""Random files that are guided by the code that they reach, with atheris, which has to be installed for it."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["llama_corral.presets", "llama_corral.common.hub", "iniconfig"]):
    from .files import FORMATS, LARGEST, any_file

STARTERS = 300


def run_guided(name: str, seconds: float, seed: int) -> None:
    """Read files for some time. Does not return: libFuzzer ends the process, after a fault with another code than 0."""
    form = FORMATS[name]
    corpus = Path(tempfile.mkdtemp(prefix="corral-fuzz-"))
    chance = random.Random(seed)
    for number, data in enumerate([*form.seeds(), *(any_file(chance, form, ()) for _ in range(STARTERS))]):
        (corpus / str(number)).write_bytes(data)
    argv = [sys.argv[0], f"-max_total_time={seconds:.0f}", f"-seed={seed}", f"-max_len={LARGEST}", str(corpus)]

    def read(data: bytes) -> None:
        form.check(data)

    atheris.Setup(argv, read)
    atheris.Fuzz()
