"""Contains speculative decoding: drafters, verification and rollback."""
