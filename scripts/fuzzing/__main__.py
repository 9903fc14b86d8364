"""Command line of the fuzzer: random requests for a real gateway, or random files for a reader."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from attacks.stage import Stage

from .campaign import Campaign


def main() -> int:
    args = arguments(sys.argv[1:])
    if args.files:
        if args.guided:
            from .guided import run_guided  # before the readers are imported

            run_guided(args.files, args.seconds, args.seed)
        from .files import FORMATS, run

        return 1 if run(FORMATS[args.files], args.seconds, args.seed) else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the cleanup that stops the gateway
    with TemporaryDirectory(prefix="corral-fuzz-") as folder:
        stage = Stage(args.keep or Path(folder), str(args.program), Path(folder))
        with stage.running("chat", "embed"):
            campaign = Campaign(stage, args.seed)
            campaign.run(args.requests, lambda text: print(text, flush=True))
    statuses = ", ".join(f"{count} × {status}" for status, count in sorted(campaign.statuses.items()))
    print(f"seed {args.seed}: {campaign.begun} requests: {statuses}; {len(campaign.faults)} faults")
    return 1 if campaign.faults else 0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Send random requests to a real gateway, or give random files to a reader."
    )
    parser.add_argument("--requests", type=int, default=1000, metavar="N", help="number of requests (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random numbers (default: 1)")
    parser.add_argument("--files", choices=("gguf", "ini"), help="give random files to this reader instead")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration with --files (default: 60)")
    parser.add_argument(
        "--guided", action="store_true", help="with --files: guided by coverage (needs: pip install atheris)"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the gateway's log here and keep it")
    parser.add_argument(
        "--program", type=Path, default=Path(sys.executable).with_name("llama-corral"), help="the gateway to test"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
