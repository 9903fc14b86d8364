"""Shared basics of all processes: errors, JSON, logging, version, and the messages between router and worker."""
