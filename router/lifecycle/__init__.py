"""Load, lease, evict and stop models."""
