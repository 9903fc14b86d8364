"""What an answer may look like, as a GBNF grammar made from a JSON schema. Pure text; knows no tokens and no HTTP."""
