"""Drafts from a second model or from an MTP head."""
