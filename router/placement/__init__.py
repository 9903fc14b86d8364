"""Which model starts, waits, is evicted or refused. Pure: a snapshot in, a decision out."""
