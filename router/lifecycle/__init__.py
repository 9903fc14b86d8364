"""Load, lease, evict and stop models. The package `process` starts the workers."""
