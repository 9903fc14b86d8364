"""Random requests for the real gateway: every answer comes in time, and an error says what is wrong with the request.

`scripts/fuzz --requests N --seed S` sends more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from attacks.stage import Stage
from fuzzing.campaign import Campaign

PROGRAM = Path(sys.executable).with_name("llama-corral")


@pytest.mark.parametrize(
    ("requests", "seed"), [(100, 3), pytest.param(1000, 1, marks=pytest.mark.slow)], ids=("100", "1000")
)
def test_no_random_request_finds_a_fault(requests: int, seed: int, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "gateway", str(PROGRAM), tmp_path)
    with stage.running("chat", "embed"):
        campaign = Campaign(stage, seed)
        campaign.run(requests, lambda _: None)
    assert "\n".join(map(str, campaign.faults.values())) == ""
    assert campaign.statuses[200] > requests * 0.15
