"""Sampler chains, grammars, thinking budgets and probabilities."""
