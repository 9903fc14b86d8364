"""Loads, leases, evicts and stops models: decides by `placement`, acts through the package `process`."""
