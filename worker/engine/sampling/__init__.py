"""Contains sampler chains, grammars, thinking budgets and probabilities."""
