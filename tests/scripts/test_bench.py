"""The benchmark's statistics, its table, and how its client reads answers. Nothing here depends on timing."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from benchmarks import __main__ as bench
from benchmarks import client, generation, hammer, models, report, summary
from benchmarks.scenario import BenchmarkPlan
from benchmarks.servers import ServerError, ServerProgram, serve
from hypothesis import given
from hypothesis import strategies as st

HIGHER = summary.Row("speed", "speed", "tok/s", "higher", 0.95)
LOWER = summary.Row("wait", "wait", "ms", "lower", 1.0)
BARE = summary.Row("errors", "errors", "", "lower", ceiling=0)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_is_a_value_with_the_right_share_below(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    chosen = summary.percentile(ordered, percent)
    assert chosen in ordered
    assert sum(value <= chosen for value in ordered) >= percent / 100 * len(ordered)


def test_percentiles_of_a_hundred() -> None:
    ordered = [float(n) for n in range(1, 101)]
    assert [summary.percentile(ordered, p) for p in (0, 50, 99, 100)] == [1, 50, 99, 100]
    with pytest.raises(ValueError, match="no values"):
        summary.percentile([], 50)


def test_gaps() -> None:
    assert summary.gaps([1.0, 3.0, 6.0]) == [2.0, 3.0]
    assert summary.gaps([1.0]) == []
    assert summary.gaps([1.0, 3.0, 6.0, 7.0, 9.0], 4.0, 6.5) == [3.0, 1.0]


def test_rounds_are_paired_so_that_a_slow_minute_affects_both() -> None:
    verdict = summary.judge(HIGHER, [100, 10, 99], [100, 10, 100])
    assert verdict.ratios == (1.0, 1.0, 0.99)
    assert verdict.ratio == 1.0
    assert verdict.ok is True


@pytest.mark.parametrize(
    ("row", "ours", "reference", "ok"),
    [
        (HIGHER, [94.0], [100.0], False),
        (LOWER, [99.0], [100.0], True),
        (LOWER, [101.0], [100.0], False),
        (LOWER, [101.0], [], None),
        (BARE, [0.0], [3.0], True),
        (BARE, [1.0], [3.0], False),
    ],
)
def test_goals(row: summary.Row, ours: list[float], reference: list[float], ok: bool | None) -> None:
    assert summary.judge(row, ours, reference).ok is ok


def test_the_best_round_of_each_side_is_compared_too() -> None:
    assert summary.judge(HIGHER, [100, 50], [80, 100]).best == 1.0
    assert summary.judge(LOWER, [100, 50], [80, 100]).best == 50 / 80
    assert summary.judge(LOWER, [100], []).best is None


def test_a_reference_of_zero_gives_no_ratio() -> None:
    assert summary.judge(BARE, [0.0], [0.0]).ratio is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.954, "0.95"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346"), (-3.21, "-3.21")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_table_names_goal_and_outcome() -> None:
    verdicts = [summary.judge(HIGHER, [100, 120], [100, 100]), summary.judge(BARE, [0], [0])]
    lines = report.table(verdicts, "llama-server").splitlines()
    assert lines[0] == "| | ours | llama-server | ratio | best rounds | goal | |"
    assert lines[2] == "| speed, tok/s | 110 (100–120) | 100 | **1.10** (1.00–1.20) | 1.20 | ≥ 0.95× | ✓ |"
    assert lines[3] == "| errors | 0 | 0 |  |  | ≤ 0 | ✓ |"


def test_without_a_reference_the_table_has_only_our_figures() -> None:
    table = report.table([summary.judge(HIGHER, [100], [])], None)
    assert table.splitlines()[-1] == "| speed, tok/s | 100 |"


VERDICTS = [summary.judge(HIGHER, [100, 120], [100, 100]), summary.judge(LOWER, [50.0], [100.0])]


def test_json_is_written(tmp_path: Path) -> None:
    report.write_json(tmp_path / "bench.json", VERDICTS, {"versions": {"ours": "1"}})
    told = json.loads((tmp_path / "bench.json").read_text())
    assert told["rows"][0]["ratio"] == 1.1
    assert told["machine"]["cores"] >= 1


@pytest.mark.slow
def test_plot_is_written(tmp_path: Path) -> None:
    report.write_plot(tmp_path / "bench.png", VERDICTS, "llama-server")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_scenarios_and_rows_have_unique_names() -> None:
    names = [scenario.name for scenario in bench.SCENARIOS]
    keys = [row.key for scenario in bench.SCENARIOS for row in scenario.rows]
    assert len(set(names)) == len(names)
    assert len(set(keys)) == len(keys)
    quick = BenchmarkPlan(Path(), quick=True)
    assert all(1 <= scenario.rounds_for(quick) <= 2 for scenario in bench.SCENARIOS)


def test_an_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(["--only", "nothing-like-this"])
    assert "nothing-like-this" in capsys.readouterr().err
    assert bench.arguments(["--only", "generation", "swap"]).only == ["generation", "swap"]


def test_the_tiny_model_is_made_once_and_has_the_whole_vocabulary(tmp_path: Path) -> None:
    import gguf

    path = models.model_file(models.TINY, tmp_path)
    made = path.stat().st_mtime_ns
    assert models.model_file(models.TINY, tmp_path).stat().st_mtime_ns == made
    embedding = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    assert embedding.shape.tolist() == [models.TINY.n_embd, models.N_VOCAB]
    assert len(set(models.words())) == models.N_VOCAB - models.N_SPECIAL


def answer_of(body: str, status: int = 200) -> client.HttpAnswer:
    return client.HttpAnswer(status=status, body=bytearray(body.encode()))


def test_a_stream_with_too_few_tokens_is_an_error() -> None:
    generation.checked(answer_of('data: {"stop":true, "tokens_predicted": 12, "x":1}'), 12)
    with pytest.raises(ServerError, match="did not have 13 tokens"):
        generation.checked(answer_of('data: {"stop":true,"tokens_predicted":12,"x":1}'), 13)
    with pytest.raises(ServerError, match="503"):
        generation.checked(answer_of("{}", 503), 12)


async def talk(reply: bytes) -> client.HttpAnswer:
    """Return the client's answer for a server that sends `reply` and closes the connection."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server:
        return await client.get(server.sockets[0].getsockname()[:2], "/")


STREAM = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n13\r\ndata: {"a":1}\n\ndata\r\n9\r\n: [DONE]\n\r\n'


async def test_the_client_records_event_times_and_joins_chunks() -> None:
    answer = await talk(STREAM + b"0\r\n\r\n")
    assert answer.good
    assert len(answer.events) == 1
    assert bytes(answer.body) == b'data: {"a":1}\n\ndata: [DONE]\n'


@pytest.mark.parametrize(
    "reply", [b"", STREAM, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", b"not http at all\r\n\r\n"]
)
async def test_an_invalid_answer_sets_fault_without_an_exception(reply: bytes) -> None:
    answer = await talk(reply)
    assert answer.fault
    assert not answer.good


async def test_a_refused_connection_is_a_fault() -> None:
    assert "Error" in (await client.get("/nowhere/at/all.sock", "/")).fault


async def test_the_load_client_counts_what_it_sent() -> None:
    async def against_nothing() -> hammer.Hits:
        async with hammer.null_server() as address:
            return await hammer.hammer_here(address, 2, 0.1, client.encode("GET", "/", keep_alive=True))

    hits = await against_nothing()
    assert hits.per_second > 0
    assert hits.errors == 0
    assert 0 < hits.p50_us <= hits.p99_us


async def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log() -> None:
    program = ServerProgram("broken", (sys.executable, "-c", "import sys; sys.exit('no such model')"))

    async def start() -> None:
        async with serve(program, []):
            raise AssertionError("it must not start")

    with pytest.raises(ServerError, match="no such model"):
        await start()
