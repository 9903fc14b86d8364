"""Determine how much memory a model needs and how much is available: estimates, budgets, devices, host memory."""
