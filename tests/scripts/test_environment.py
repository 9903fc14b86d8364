"""The set-up of `scripts/environment.sh`, with fake compilers and a fake pip."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import shutil
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
    executable(compiler, COMPILER.format(macros=macros, program=program))
    script = f"set -euo pipefail; . {shlex.quote(str(ROOT))}/scripts/environment.sh; VENV={tmp_path}; fails_with_amx"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "CXX": str(compiler)}, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode == 0, done.stderr) == (fails, "")


PIP = """#!/bin/sh
[ "$1" = -m ] || exit 0 # asked whether it has pip
printf '%s\\t%s\\n' "$CMAKE_ARGS" "$*" >> "{root}/installs"
version=$(sed -n 's/.*"llama-cpp-python==\\([0-9.]*\\)".*/\\1/p' "{root}/pyproject.toml")
mkdir -p "{site_packages}/llama_cpp_python-$version.dist-info"
"""
"""Stands for the Python of .venv: notes what pip was called with, and installs an engine without any content."""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Checkout:
    """A copy of the files that a set-up reads, in a folder with a space and a quote in its name."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "Bob's checkout"
        self.parts = self.root / "scripts" / "llama_cpp_parts.cmake"
        self.site_packages = self.root / ".venv" / "lib" / "python3.11" / "site-packages"
        self.parts.parent.mkdir(parents=True)
        for name in ("environment.sh", self.parts.name):
            shutil.copy(ROOT / "scripts" / name, self.parts.parent)
        self.pin("0.3.36")
        self.compiler = folder / "c++"  # CC and CXX may contain arguments, so this path has no space
        executable(self.root / ".venv" / "bin" / "python", PIP.format(root=self.root, site_packages=self.site_packages))
        executable(self.compiler, COMPILER.format(macros="", program=""))

    def pin(self, version: str) -> None:
        (self.root / "pyproject.toml").write_text(f'dependencies = ["llama-cpp-python=={version}"]\n')

    def install(self, **environment: str) -> list[tuple[list[str], bool]]:
        """Return for every call of pip CMake's arguments, and True if it builds only the engine."""
        inherited = {name: value for name, value in os.environ.items() if name != "CMAKE_ARGS"}
        run = f"set -euo pipefail; . {shlex.quote(str(self.parts.parent))}/environment.sh; ensure_installed dev"
        installs = self.root / "installs"
        installs.write_text("")
        done = subprocess.run(
            ["bash", "-c", run],
            env={**inherited, "CC": str(self.compiler), "CXX": str(self.compiler), **environment},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")
        calls = [line.split("\t") for line in installs.read_text().splitlines()]
        return [(shlex.split(cmake_args), "--no-cache-dir" in pip) for cmake_args, pip in calls]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_every_build_leaves_parts_of_llama_cpp_out(checkout: Checkout) -> None:
    leaves_out = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={checkout.parts}"
    assert checkout.install() == [([leaves_out], False)]
    assert checkout.install(CMAKE_ARGS="-DGGML_CUDA=on -DX='a b'") == [
        ([leaves_out, "-DGGML_CUDA=on", "-DX=a b"], True),
        ([leaves_out], False),
    ]
    assert checkout.install() == []  # the user's arguments are kept, and nothing is built again
    assert checkout.install(CMAKE_ARGS="") == [([leaves_out], True), ([leaves_out], False)]


def test_a_new_engine_is_built_with_the_same_arguments(checkout: Checkout) -> None:
    checkout.install(CMAKE_ARGS="-DGGML_CUDA=on")
    checkout.pin("0.3.37")
    built, _ = checkout.install()
    assert (built[0][1:], built[1]) == (["-DGGML_CUDA=on"], True)


def test_an_existing_engine_is_kept(checkout: Checkout) -> None:
    checkout.install()
    checkout.parts.write_text("# another text\n")
    assert checkout.install() == []
    (checkout.root / ".venv" / "installed").unlink()
    assert [alone for _, alone in checkout.install()] == [False]


NINJA = """\
  Building wheel for llama-cpp-python (pyproject.toml): started
  [1/2] Building C object CMakeFiles/cmTC_1d2b2.dir/testCCompiler.c.o
  [2/2] Linking C executable cmTC_1d2b2
  *** Building project with Ninja...
  [1/136] /usr/bin/gcc -DGGML_BUILD -o ggml-alloc.c.o -c ggml-alloc.c
  [13/136] /usr/bin/g++ -DGGML_BUILD -o hbm.cpp.o -c hbm.cpp
  [14/136] /usr/bin/g++ -DGGML_BUILD -o ggml-quants.c.o -c ggml-quants.c
  [15/136] : && /usr/bin/g++ -shared -o bin/libggml-base.so.0
  [64/136] /usr/bin/g++ -o llama-graph.cpp.o -c llama-graph.cpp
  llama-graph.cpp:12: error: this is one
  [136/136] : && /usr/bin/g++ -shared -o bin/libmtmd.so.0
  Building wheel for llama-cpp-python (pyproject.toml): finished with status 'done'
Successfully installed llama-cpp-python-0.3.36
"""
"""Lines of one build with `pip install --verbose`, shortened; the error is added."""
COMPILED_ON_THE_WAY = (
    "llama.cpp is compiled on the way. For the CPU alone that takes three to four minutes on two cores."
)


def bash(command: str, *, stdin: str = "") -> str:
    script = f"set -euo pipefail; . {shlex.quote(str(ROOT))}/scripts/environment.sh; {command}"
    return subprocess.run(
        ["bash", "-c", script], input=stdin, stdout=subprocess.PIPE, text=True, timeout=30, check=True
    ).stdout


def test_progress_is_a_line_every_tenth() -> None:
    assert bash("time_left() { echo 'SOME LEFT'; }; show_progress", stdin=NINJA).splitlines() == [
        COMPILED_ON_THE_WAY,
        "  compiling llama.cpp  10 %  14/136  SOME LEFT",
        "  compiling llama.cpp  47 %  64/136  SOME LEFT",
        "  llama-graph.cpp:12: error: this is one",
        "  compiling llama.cpp  100 %  136/136",
        "Successfully installed llama-cpp-python-0.3.36",
    ]


def everything(terminal: int) -> bytes:
    """Return all that was written to a terminal whose other end is closed. One read may return only a part of it."""
    read = b""
    with contextlib.suppress(OSError):  # EIO is the end
        while part := os.read(terminal, 65536):
            read += part
    return read


def test_progress_on_a_terminal_is_a_bar() -> None:
    ours, terminal = pty.openpty()
    script = f"set -euo pipefail; . {shlex.quote(str(ROOT))}/scripts/environment.sh; show_progress"
    subprocess.run(["bash", "-c", script], input=NINJA.encode(), stdout=terminal, timeout=30, check=True)
    os.close(terminal)
    lines = everything(ours).decode().replace("\x1b[K", "").split("\n")
    os.close(ours)
    drawn = lines[1].rstrip("\r").split("\r")
    assert drawn[1] == "  compiling  [--------------------]  0 %  1/136"
    assert drawn[-1] == "  compiling  [#########-----------]  47 %  64/136  about 10 s left"
    assert lines[2:4] == [
        "  llama-graph.cpp:12: error: this is one\r",
        "\r  compiling  [####################]  100 %  136/136\r",
    ]


@pytest.mark.parametrize(
    ("count", "seconds", "left"),
    [("59 125", 97, "1 min 50 s"), ("59 125", 15, "20 s"), ("40 300", 100, "11 min"), ("124 125", 200, "10 s")],
)
def test_the_time_left_follows_from_the_files_done(count: str, seconds: int, left: str) -> None:
    state = f"since=0 counted={count.split()[1]} tenth=0 drawn=; SECONDS={seconds}"
    assert bash(f"{state}; compiled {count}").endswith(f"  about {left} left\n")
