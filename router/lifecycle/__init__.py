"""Loads, leases, evicts and stops models: decides by `placement`, acts through `process`."""
