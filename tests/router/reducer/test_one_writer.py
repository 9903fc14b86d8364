"""Only the reducer writes the state of the models, and it does nothing else: both are read from the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROUTER = Path(__file__).resolve().parents[3] / "router"
RECORDS = ("models/model.py", "models/queue.py", "models/registry.py", "models/download.py", "reducer/state.py")
"""The files that define the state. Their classes may set their own fields."""
WRITERS = ("reducer", "models")
OTHER_RECORDS = {"conversation.request"}
"""Fields of other records that have the name of a field of the state."""
READS = {"view", "resolve", "names", "variants_of"}
"""The methods of the state that may be called outside of the reducer."""
OUTSIDE = sorted(
    path for path in ROUTER.rglob("*.py") if path.relative_to(ROUTER).parts[0] not in (*WRITERS, "placement")
)


def name_of(path: Path) -> str:
    return path.relative_to(ROUTER).as_posix()


def fields() -> set[str]:
    """Return the names of all fields of the records that are not frozen."""
    found = set()
    for name in RECORDS:
        for node in ast.walk(ast.parse((ROUTER / name).read_text())):
            if isinstance(node, ast.ClassDef) and "frozen=True" not in "".join(map(ast.unparse, node.decorator_list)):
                found |= {ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign)}
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {one.attr for one in targets if isinstance(one, ast.Attribute)}
    return found


def written(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield the attributes that are assigned or deleted, as `x.field` or `x.field[...]`, also in tuples."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, (ast.Assign, ast.Delete)):
            targets = list(node.targets)
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        for target in targets:
            yield from attributes_of(target)


def attributes_of(target: ast.expr) -> Iterator[ast.Attribute]:
    if isinstance(target, ast.Attribute):
        yield target
    elif isinstance(target, (ast.Subscript, ast.Starred)):
        yield from attributes_of(target.value)
    elif isinstance(target, (ast.Tuple, ast.List)):
        for part in target.elts:
            yield from attributes_of(part)


def is_own(attribute: ast.Attribute) -> bool:
    return isinstance(attribute.value, ast.Name) and attribute.value.id == "self"


def test_a_write_is_found() -> None:
    tree = ast.parse(
        "model.state = 1; a, x.instance.leases = 1, 2; del s.leases[r]; s.loads[i] += 1; self.names[a.b] = 1"
    )
    assert [part.attr for part in written(tree)] == ["state", "leases", "leases", "loads", "names"]


@pytest.mark.parametrize("path", OUTSIDE, ids=name_of)
def test_no_file_outside_the_reducer_writes_the_state(path: Path) -> None:
    tree = ast.parse(path.read_text())
    state = fields()
    assert {"state", "leases", "instance", "_entries", "exit_waits"} <= state
    found = {ast.unparse(part) for part in written(tree) if part.attr in state and not is_own(part)}
    assert found - OTHER_RECORDS == set()
    assert not any(isinstance(node, ast.Name) and node.id == "setattr" for node in ast.walk(tree))


@pytest.mark.parametrize("path", OUTSIDE, ids=name_of)
def test_a_file_outside_the_reducer_calls_only_methods_of_the_state_that_read(path: Path) -> None:
    tree = ast.parse(path.read_text())
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    on_state = [call for call in calls if isinstance(call, ast.Attribute) and "._state." in ast.unparse(call)]
    assert {call.attr for call in on_state} <= READS
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imported for alias in node.names if "reducer" in (node.module or "").split(".")}
    allowed = {"effects", "events", "Effect", "Event", "Process", "Timer", "REVIEW"}
    assert names <= allowed | {"Intake", "Reducer", "describe", "initial_state"}


@pytest.mark.parametrize("path", sorted((ROUTER / "reducer").glob("*.py")), ids=name_of)
def test_the_reducer_uses_no_event_loop_clock_process_or_thread(path: Path) -> None:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
        assert not isinstance(node, (ast.AsyncFunctionDef, ast.Await)), "the reducer waits for nothing"
    roots = {module.split(".")[0] for module in modules}
    assert not roots & {"asyncio", "time", "datetime", "os", "random", "signal", "subprocess", "threading"}


@pytest.mark.parametrize("name", ["commands", "downloads", "reloads", "requests", "workers"])
def test_no_handler_decides_what_follows(name: str) -> None:
    """Placement, waiting requests, expiry, keep-warm and the timer have one place: `sequence`."""
    tree = ast.parse((ROUTER / "reducer" / f"{name}.py").read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"placement.decide", "placement.expired", "keep_warm.next_warm", "follow_up"}
    assert not any(isinstance(node, ast.ImportFrom) and node.module == "sequence" for node in ast.walk(tree))
