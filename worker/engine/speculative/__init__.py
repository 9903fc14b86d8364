"""Speculative decoding: drafters, verification and rollback."""
