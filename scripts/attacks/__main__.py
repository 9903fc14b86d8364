"""Command line of the attacks: runs the chosen ones, prints a line for each, and ends with 1 if one broke the rule."""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from .attack import Attack
from .catalogue import ATTACKS, MORE_PRESETS
from .probe import Gaps
from .rule import MORE_MB, MORE_MS, Limits, Measured, broken
from .stage import ModelRefused, make_models
from .trial import Trials

HEADER = f"{'attack':<28} {'same':>7} {'other':>7} {'health':>7} {'router':>7} {'worker':>7} {'s':>6}  statuses"
UNITS = f"{'':<28} {'ms':>7} {'ms':>7} {'ms':>7} {'MB':>7} {'MB':>7}"


def main() -> int:
    args = arguments(sys.argv[1:])
    chosen = choose(args.only, quick=args.quick)
    if args.list:
        for attack in chosen:
            print(f"{attack.name:<28} {'quick ' if attack.quick else '      '} {attack.what}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the cleanup that stops the gateway
    limits = Limits(args.more_ms, args.more_mb)
    with TemporaryDirectory(prefix="corral-attack-") as folder:
        place = args.keep or Path(folder)
        trials = Trials(
            place,
            str(args.program),
            make_models(place / "models"),
            patience=args.patience,
            more_presets=MORE_PRESETS.format(models=place / "models"),
        )
        print(f"{HEADER}\n{UNITS}", flush=True)
        failed = [attack.name for attack in chosen if not keeps_the_rule(trials, attack, limits)]
    print(f"\n{len(chosen)} attacks, {len(failed)} broke the rule" + (f": {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/attack", description="Attack a real gateway and measure how much that disturbs other clients."
    )
    parser.add_argument("--list", action="store_true", help="list the attacks and exit")
    parser.add_argument("--only", action="append", metavar="NAME", help="run the attacks whose name begins so")
    parser.add_argument("--quick", action="store_true", help="run only the attacks of a few seconds")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds to wait for an answer (default: 30)")
    parser.add_argument("--more-ms", type=float, default=MORE_MS, help="allowed delay of others (default: 250)")
    parser.add_argument("--more-mb", type=float, default=MORE_MB, help="allowed memory of a process (default: 512)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write logs and files here and keep them")
    parser.add_argument(
        "--program", type=Path, default=Path(sys.executable).with_name("llama-corral"), help="the gateway to attack"
    )
    return parser.parse_args(argv)


def choose(only: Sequence[str] | None, *, quick: bool) -> list[Attack]:
    """Return the chosen attacks. Ends the program if a name fits none."""
    for name in only or ():
        if not any(attack.name.startswith(name) for attack in ATTACKS):
            sys.exit(f"scripts/attack: no attack's name begins with '{name}'; --list shows them")
    return [
        attack
        for attack in ATTACKS
        if (not only or attack.name.startswith(tuple(only))) and (attack.quick or not quick)
    ]


def keeps_the_rule(trials: Trials, attack: Attack, limits: Limits) -> bool:
    try:
        honest = trials.honest(attack)
        seen = trials.measure(attack)
    except ModelRefused as refusal:
        print(f"{attack.name:<28} the model is refused: {refusal}", flush=True)
        return attack.may_be_refused
    except (RuntimeError, OSError, EOFError) as error:
        print(f"{attack.name:<28} could not be measured: {type(error).__name__}: {error}", flush=True)
        return False
    faults = broken(attack, seen, honest, limits)
    print(line(attack.name, seen), flush=True)
    print(honest_line(honest), flush=True)
    for fault in faults:
        print(f"    ✗ {fault}", flush=True)
    return not faults


def line(name: str, seen: Measured) -> str:
    statuses = Counter(answer.status for answer in seen.answers)
    shown = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
    gaps = seen.gaps
    waits = f"{gaps.same * 1000:7.0f} {gaps.other * 1000:7.0f} {gaps.health * 1000:7.0f}"
    return f"{name:<28} {waits} {seen.router_mb:7.0f} {seen.worker_mb:7.0f} {seen.seconds:6.1f}  {shown}"


def honest_line(gaps: Gaps) -> str:
    return f"{'  honest request':<28} {gaps.same * 1000:7.0f} {gaps.other * 1000:7.0f} {gaps.health * 1000:7.0f}"


if __name__ == "__main__":
    sys.exit(main())
