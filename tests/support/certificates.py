"""Makes certificates for servers on 127.0.0.1, from an authority that only the test trusts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme


class Certificate(NamedTuple):
    """PEM files."""

    key: Path
    chain: Path
    authority: Path


def make_certificate(directory: Path) -> Certificate:
    """Make a certificate for `localhost` and 127.0.0.1 in `directory`."""
    directory.mkdir(exist_ok=True)
    files = Certificate(directory / "key.pem", directory / "chain.pem", directory / "authority.pem")
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    leaf.private_key_pem.write_to_path(files.key)
    for pem in leaf.cert_chain_pems:
        pem.write_to_path(files.chain, append=True)
    authority.cert_pem.write_to_path(files.authority)
    return files
