"""The limit of open files: raised in a server, and restored for the programs that it starts."""

from __future__ import annotations

import subprocess
import sys

SERVER = """
import asyncio, resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, min(hard, 1000)))
from llama_corral.common.base.open_files import current_limit, original_limit, raise_limit, restore_limit
from llama_corral.common.tools.process import Processes

async def tool():
    result = await Processes({}).run(["/bin/sh", "-c", "ulimit -S -n"], seconds=20, limit=100)
    return result.output.decode().strip()

raise_limit()
print(current_limit(), original_limit(), asyncio.run(tool()))
restore_limit(original_limit())
print(current_limit())
"""


def test_a_server_raises_its_limit_and_not_that_of_its_tools() -> None:
    done = subprocess.run([sys.executable, "-c", SERVER], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["1000", "200", "200", "200"]
