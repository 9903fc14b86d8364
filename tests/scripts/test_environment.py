"""The set-up of `scripts/environment.sh`, with stand-ins for compilers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = """#!/bin/sh
case " $* " in
  *" -E "*) echo "{macros}"; seq 99999 ;;
  *) while [ "$1" != -o ]; do shift; done; printf '#!/bin/sh\\n{program}\\n' > "$2"; chmod +x "$2" ;;
esac
"""


@pytest.mark.parametrize(
    ("macros", "program", "fails"),
    [
        ("#define __AMX_TILE__ 1", "kill -ILL $$", True),
        ("#define __AMX_TILE__ 1", "exit 0", False),
        ("#define __SSE2__ 1", "kill -ILL $$", False),
    ],
)
def test_a_compiler_that_breaks_amx_is_found(tmp_path: Path, macros: str, program: str, fails: bool) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(COMPILER.format(macros=macros, program=program))
    compiler.chmod(0o755)
    script = f"set -euo pipefail; . {ROOT}/scripts/environment.sh; VENV={tmp_path}; fails_with_amx"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "CXX": str(compiler)}, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode == 0, done.stderr) == (fails, "")
