"""Convert a JSON schema to a GBNF grammar. Pure text processing: no tokens, no HTTP."""
