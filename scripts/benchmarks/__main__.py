"""Command line of the benchmark: selects scenarios, runs both sides in turn, prints the table, writes JSON and plot."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from . import constrained, drafting, gateway, generation, lifecycle, sharing, warm
from .hammer import Hits, hammer, null_server
from .report import number, table, write_json, write_plot
from .scenario import BenchmarkPlan, Scenario
from .servers import ServerError, ServerProgram
from .summary import Verdict, judge

SCENARIOS: tuple[Scenario, ...] = (
    *generation.SCENARIOS,
    *sharing.SCENARIOS,
    *constrained.SCENARIOS,
    *drafting.SCENARIOS,
    *gateway.SCENARIOS,
    *lifecycle.SCENARIOS,
    *warm.SCENARIOS,
)
NOTE = "No --reference was given: without a comparison these values describe only this machine at this moment."


def main() -> int:
    args = arguments(sys.argv[1:])
    chosen = [s for s in SCENARIOS if not args.only or any(s.name.startswith(name) for name in args.only)]
    sides = [ServerProgram("ours", (str(args.program),))]
    if args.reference:
        sides.append(ServerProgram(args.reference.name, (str(args.reference.resolve()),)))
    raise_open_files()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the cleanup that stops the servers
    plan = BenchmarkPlan(cache_folder() / "models", args.quick)
    try:
        verdicts, client, failed = uvloop.run(measure(chosen, sides, plan))
    except KeyboardInterrupt:
        return 130
    publish(verdicts, client, sides, args.out)
    for name, reason in failed.items():
        say(f"{name} could not be measured: {reason}")
    return 1 if failed else 0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    names = ", ".join(s.name for s in SCENARIOS)
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure llama-corral, preferably in comparison with llama-server."
    )
    parser.add_argument("--reference", type=Path, metavar="LLAMA-SERVER", help="measure this program too, in turn")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"run only these scenarios, given by the beginning of their name: {names}",
    )
    parser.add_argument("--quick", action="store_true", help="run two short rounds per scenario: rough results")
    parser.add_argument(
        "--out", type=Path, default=cache_folder() / "results", help="folder for bench.md, bench.json and bench.png"
    )
    parser.add_argument(
        "--program", type=Path, default=Path(sys.executable).with_name("llama-corral"), help="the program to measure"
    )
    args = parser.parse_args(argv)
    for name in args.only:
        if not any(s.name.startswith(name) for s in SCENARIOS):
            parser.error(f"--only: no scenario begins with {name!r}; there are {names}")
    return args


async def measure(
    chosen: Sequence[Scenario], sides: Sequence[ServerProgram], plan: BenchmarkPlan
) -> tuple[list[Verdict], Hits, dict[str, str]]:
    verdicts: list[Verdict] = []
    failed: dict[str, str] = {}
    async with null_server() as nothing:
        client = await hammer(nothing, 64, 1.0, "/tokenize", gateway.SMALL)
    for scenario in chosen:
        try:
            verdicts += await alternate(scenario, sides, plan)
        except ServerError as fault:
            failed[scenario.name] = str(fault)
            say(f"{scenario.name}: {fault}")
    return verdicts, client, failed


async def alternate(scenario: Scenario, sides: Sequence[ServerProgram], plan: BenchmarkPlan) -> list[Verdict]:
    """Run the rounds of both sides in turn; the side that begins changes each time."""
    samples: dict[str, dict[str, list[float]]] = {row.key: {side.label: [] for side in sides} for row in scenario.rows}
    async with AsyncExitStack() as stack:
        rounds = {side.label: await stack.enter_async_context(scenario.open(side, plan)) for side in sides}
        if scenario.warm and not plan.quick:
            for warm_up in rounds.values():
                await warm_up()
        for turn in range(scenario.rounds_for(plan)):
            for label in sorted(rounds, reverse=bool(turn % 2)):
                values = await rounds[label]()
                for key, value in values.items():
                    samples[key][label].append(value)
                say(f"{scenario.name} {turn + 1}, {label}: " + ", ".join(f"{k} {number(v)}" for k, v in values.items()))
    labels = [side.label for side in sides]
    return [judge(row, *([samples[row.key][label] for label in labels] + [[]])[:2]) for row in scenario.rows]


def publish(verdicts: Sequence[Verdict], client: Hits, sides: Sequence[ServerProgram], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    reference = sides[1].label if len(sides) > 1 else None
    facts = {
        "versions": {side.label: side.version() for side in sides},
        "client_alone": {"requests_per_second": client.per_second, "p50_us": client.p50_us},
    }
    write_json(out / "bench.json", verdicts, facts)
    text = table(verdicts, reference)
    (out / "bench.md").write_text(text + "\n")
    print(text)
    print(f"\nThe load client alone reaches {number(client.per_second)} requests/s against a server that does nothing.")
    if reference is None:
        print(NOTE)
    elif any(verdict.ratios for verdict in verdicts):
        write_plot(out / "bench.png", verdicts, reference)
    print(f"Table, figures and plot: {out}")


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-corral" / "bench"


def raise_open_files() -> None:
    """Raise the limit of open files, which servers inherit: each stream needs a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
