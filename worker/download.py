"""Downloads a model's files in a worker process, without loading the model.

The router starts the process for `POST /models` and kills it to cancel. The next download continues a partial one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from llama_corral.common.base.worker_reports import WorkerReport
from llama_corral.common.hub.download import DownloadProgress
from llama_corral.common.hub.resolve import resolve_files
from llama_corral.presets.options.settings import Settings

from .lifeline import Lifeline

log = logging.getLogger("corral.worker")

STOPPED = 1  # exit code


def download(settings: Settings, environ: Mapping[str, str], lifeline: Lifeline) -> int:
    """Download the files and return the process exit code. Blocks. Raises ModelFilesError."""
    lifeline.on_exit(lambda _: os._exit(STOPPED))  # safe: the next download can continue any partial file

    def report(progress: DownloadProgress) -> None:
        payload = {"url": progress.url, "downloaded": progress.downloaded, "total": progress.total}
        lifeline.report(WorkerReport("downloading", payload))

    files = resolve_files(settings, environ, report)
    log.info("downloaded %s", files.model)
    return 0
