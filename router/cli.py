"""The console script `llama-corral`. It starts a router's zygote, then imports and runs `command`.

The zygote's imports take longest, so it is started before this process imports anything else. Signals that ask a
router for something, such as SIGHUP, are ignored even before that.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from llama_corral.common.base.user_signals import ignore_early_reload, ignore_user_signals


def main() -> NoReturn:
    try:
        ignore_user_signals()
        ignore_early_reload()
        from .process.zygote_start import start_early

        start_early(sys.argv[1:], os.environ)
        gc.disable()  # it only delays imports, which leave almost no garbage; `service` turns it on again
        from .command import main as run_command

        run_command()
    except KeyboardInterrupt:
        sys.exit(130)
