"""Command line of the soak test: runs the load for some minutes, waits until idle, stops the gateway, reports."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from .client import drive
from .ledger import Ending, Ledger
from .target import Target
from .trouble import disturb
from .watch import EVERY_S, Verifier

READY_S = 60.0
REST_S = 30.0
"""Every preset has a `ttl` of a few seconds, so by then all models are unloaded if there are no leases or waiters."""
CLIENTS = 40
"""Most open requests: more would only make the queue longer."""


def main() -> int:
    args = arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the cleanup that stops the gateway
    print(f"soak of {args.minutes:g} minutes, seed {args.seed}", flush=True)
    with TemporaryDirectory(prefix="corral-soak-") as folder:
        target = Target(str(args.program), Path(folder))
        ledger = Ledger(args.seed)
        verifier = Verifier(target, ledger)
        with target.running():
            asyncio.run(soak(target, ledger, verifier, args.minutes * 60, args.rate))
            end(target, ledger)
        report(ledger, verifier)
        if args.looks:
            args.looks.write_text(json.dumps([asdict(look) for look in verifier.looks]))
        if ledger.violations and args.keep_log:
            args.keep_log.write_bytes(target.log.read_bytes())
    return 1 if ledger.violations else 0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="Test a real gateway under random load and faults."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="duration (default: 10)")
    parser.add_argument(
        "--rate", type=float, default=2.5, help="arrivals per second, some of them bursts (default: 2.5)"
    )
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="seed of the random numbers"
    )
    parser.add_argument("--keep-log", type=Path, metavar="FILE", help="copy the gateway's log here if a check failed")
    parser.add_argument("--looks", type=Path, metavar="FILE", help="write all measurements here, as JSON")
    parser.add_argument(
        "--program", type=Path, default=Path(sys.executable).with_name("llama-corral"), help="the gateway to test"
    )
    return parser.parse_args(argv)


async def soak(target: Target, ledger: Ledger, verifier: Verifier, seconds: float, rate: float) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(target.url, connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
        await _ready(session, target)
        stop = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(drive(session, ledger, rate, stop, CLIENTS))
            group.create_task(disturb(session, ledger, target, stop))
            group.create_task(verifier.watch(session, stop))
        await _rest(session, target, ledger)


async def _ready(session: aiohttp.ClientSession, target: Target) -> None:
    limit = time.monotonic() + READY_S
    while time.monotonic() < limit and target.process.poll() is None:
        try:
            async with session.get("/health") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)
    sys.exit(f"the gateway is not ready:\n{target.last_words()}")


async def _rest(session: aiohttp.ClientSession, target: Target, ledger: Ledger) -> None:
    """Wait until all models are unloaded by their `ttl`. A lease or waiter that was not removed would keep a worker."""
    limit = time.monotonic() + REST_S
    while time.monotonic() < limit:
        async with session.get("/models") as response:
            shown = {entry["id"]: entry["status"]["value"] for entry in (await response.json())["data"]}
        running = [name for name, status in shown.items() if status != "unloaded"]
        if not running and not target.workers():
            return
        await asyncio.sleep(EVERY_S)
    ledger.violate(f"not idle after {REST_S:.0f} s: {running} run, {len(target.workers())} workers exist")


def end(target: Target, ledger: Ledger) -> None:
    if target.process.poll() is not None:
        ledger.violate(f"the gateway exited unexpectedly with {target.process.returncode}:\n{target.last_words()}")
        return
    code = target.stop()
    if code != 0:
        ledger.violate("the gateway did not stop" if code is None else f"the gateway exited with {code}")
    if orphans := target.family():
        ledger.violate(f"processes that still run: {[process.pid for process in orphans]}")


def report(ledger: Ledger, verifier: Verifier) -> None:
    ledger.close()
    trends = verifier.trends()
    for one in trends:
        if not one.is_flat:
            ledger.violate(str(one))
    print(f"\n{ledger.begun} requests, the slowest {ledger.slowest:.1f} s")
    for ending in Ending:
        print(f"  {ledger.endings[ending]:7} {ending.value}")
    print("disturbances: " + ", ".join(f"{count} {name}" for name, count in ledger.deeds.most_common()))
    print(f"{ledger.hit} streams ran on workers that were killed; {ledger.endings[Ending.TOLD]} got an error event")
    print(f"at most {verifier.most_workers} workers at the same time; {len(verifier.looks)} measurements")
    for one in trends:
        print(f"  {one}")
    for reason, count in ledger.reasons.most_common(8):
        print(f"  {count:5} × {reason}")
    print(f"\n{len(ledger.violations)} violations" + "".join(f"\n  {story}" for story in ledger.violations[:30]))


if __name__ == "__main__":
    sys.exit(main())
