"""Drafts from n-grams of the text so far."""
