"""The project's structure: shipped files, layout, and rules that no linter checks."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import tokenize
import tomllib
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "presets", "router", "worker")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST_FILE = 400  # lines
LARGEST_FOLDER = 25  # source files
DEMO_BYTES = 6_000_000


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked_files() -> list[Path]:
    """Return the files that git tracks or does not ignore; outside of a checkout, the source files."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return SOURCES
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_top_level_has_only_the_agreed_entries() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    visible = {name for name in top if not name.startswith(".")}
    files = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
    assert visible <= files | {*PACKAGES, "tests", "scripts"}


def test_the_shipped_packages_are_the_folders() -> None:
    folders = {
        "llama_corral." + name_of(init.parent).replace("/", ".")
        for package in PACKAGES
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def test_tests_are_in_the_folder_of_the_package_that_they_test() -> None:
    folders = {*PACKAGES, "end_to_end", "scripts"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert path.name == "test_structure.py" or path.relative_to(ROOT / "tests").parts[0] in folders, path.name


def test_no_folder_has_too_many_files() -> None:
    folders = {path.parent for path in SOURCES}
    counts = {name_of(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: n for name, n in counts.items() if n > LARGEST_FOLDER} == {}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_has_a_docstring(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert len(docstring) > 20


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_imports_its_own_package_relatively(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        own = f"llama_corral.{path.relative_to(ROOT).parts[0]}"
        assert not [name for name in names if name == own or name.startswith(own + ".")]


def module_of(path: Path) -> str:
    return ".".join(("llama_corral", *path.relative_to(ROOT).parts)).removesuffix(".py").removesuffix(".__init__")


def source_of(module: str) -> Path:
    path = ROOT / module.removeprefix("llama_corral.").replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """The graph of all imports, including those in functions and those for types only."""
    roots = PROJECT["tool"]["importlinter"]["root_packages"]
    graph = grimp.build_graph(*roots, exclude_type_checking_imports=False, cache_dir=None)
    assert graph.modules == {module_of(path) for path in SOURCES}
    return graph


@pytest.mark.parametrize("folder", sorted({ROOT, *(path.parent for path in SOURCES)}), ids=name_of)
def test_a_folder_has_no_import_cycle(folder: Path, imports: grimp.ImportGraph) -> None:
    """A sub-package counts as one member, so a cycle of modules is found in their closest common folder."""
    package = module_of(folder)

    def member(module: str) -> str:
        return module.removeprefix(f"{package}.").split(".")[0] if module != package else "__init__"

    inside = [module for module in imports.modules if f"{module}.".startswith(f"{package}.")]
    imported: dict[str, set[str]] = {member(module): set() for module in inside}
    for module in inside:
        used = imports.find_modules_directly_imported_by(module).intersection(inside)
        imported[member(module)] |= {member(name) for name in used} - {member(module)}
    cycle = None
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        cycle = " imports ".join(reversed(error.args[1]))
    assert cycle is None


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_docstring_names_real_neighbours(path: Path, imports: grimp.ImportGraph) -> None:
    """A module, file or folder in backticks must import this module or be imported by it; `module.name` must exist."""
    own = module_of(path)
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    neighbours = imports.find_modules_directly_imported_by(own) | imports.find_modules_that_directly_import(own)

    def modules_named(name: str) -> list[str]:
        return [module for module in imports.modules if f".{module}".endswith(f".{name}")]

    for quoted in re.findall(r"`([\w/]+(?:\.\w+)*)`", docstring):
        name = quoted.removesuffix(".py").replace("/", ".")
        module, _, attribute = name.rpartition(".")
        if not (named := modules_named(name)) and module and (named := modules_named(module)):
            assert any(re.search(rf"\b{attribute}\b", source_of(m).read_text()) for m in named), quoted
        if named and own not in named:  # otherwise a function, an option or a field
            assert any(f"{n}.".startswith(f"{m}.") for n in neighbours for m in named), f"`{quoted}` is no neighbour"


INVENTED_WORDS = re.compile(
    r"\b(nobody|who(ever|m|mever)?|anew|reckon(s|ed|ing)?|of its own|in vain|beside|manners|for ever)\b",
    re.I,
)


def test_texts_use_plain_words() -> None:
    """A model, a request and a process are "it"; the other words have plain synonyms that more readers know."""
    texts = [path for path in tracked_files() if path.suffix == ".md"] + SOURCES
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if INVENTED_WORDS.search(line)
    ]
    assert found == []


def test_tests_use_plain_words() -> None:
    """In names, comments, docstrings and messages. Other strings are data."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        source = path.read_text()
        texts = [(getattr(node, "lineno", 1), text) for node in ast.walk(ast.parse(source)) for text in texts_of(node)]
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.COMMENT, tokenize.NAME):
                texts.append((token.start[0], token.string.replace("_", " ")))
        found += [f"{name_of(path)}:{line}: {text}" for line, text in texts if INVENTED_WORDS.search(text)]
    assert found == []


def texts_of(node: ast.AST) -> list[str]:
    """Return the texts for readers that are directly in a node: its docstring, or the message of an assertion."""
    match node:
        case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return [ast.get_docstring(node) or ""]
        case ast.Assert(msg=ast.expr() as message) | ast.Raise(exc=ast.expr() as message):
            constants = (part.value for part in ast.walk(message) if isinstance(part, ast.Constant))
            return [text for text in constants if isinstance(text, str)]
        case _:
            return []


def test_loggers_have_fixed_names() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger" and node.args:
                name = node.args[0]
                assert isinstance(name, ast.Constant), name_of(path)
                assert not name.value or str(name.value).split(".")[0] in ("corral", "aiohttp", "asyncio"), name_of(
                    path
                )


def test_files_are_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}
    assert statistics.median(lengths.values()) < 200


def test_no_file_contains_a_path_of_the_developers_machine() -> None:
    places = [f"{ROOT}/".encode(), f"{Path.home()}/".encode()]
    for path in tracked_files():
        content = path.read_bytes()
        assert not [place for place in places if place in content], name_of(path)


def test_scripts_are_executable() -> None:
    for name in ("run", "test", "check", "bench"):
        script = ROOT / "scripts" / name
        assert script.read_text().startswith("#!"), name
        assert os.access(script, os.X_OK), name


def test_the_demo_models_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (ROOT / "presets" / "demo").glob("*.gguf")}
    assert len(sizes) >= 2
    assert sum(sizes.values()) <= DEMO_BYTES, sizes


def test_the_wheel_contains_all_tracked_files(tmp_path: Path) -> None:
    """Build from a copy, because setuptools writes files into the source folder."""
    copy = tmp_path / "copy"
    for path in tracked_files():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (copy / "README.md").touch()
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(copy)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix("llama_corral/") for name in archive.namelist()}
    tracked = {name_of(path) for path in tracked_files() if path.relative_to(ROOT).parts[0] in PACKAGES}
    assert {name for name in tracked if not name.endswith(".md")} <= packed


def test_every_scenario_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "tests" / "SCENARIOS.md").read_text().splitlines() if re.match(r"\| \d+ ", line)]
    assert [int(row.split()[1]) for row in rows] == list(range(1, 50))
    for row in rows:
        named = re.findall(r"`([\w/]*test_\w+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((ROOT / "tests" / file).read_text())
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            defined = {node.name for node in tree.body if isinstance(node, kinds)}
            assigned = {ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)}
            assert test in defined | assigned, f"{file}::{test}"
