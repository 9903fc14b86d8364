"""Reads llama.cpp's grammars (GBNF), checks their size and cost, and writes them in llguidance's language. Pure."""
