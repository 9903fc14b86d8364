"""Decide which model starts, waits, is evicted or refused. Pure: from a snapshot to a decision."""
