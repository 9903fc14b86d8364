"""The option table: every option once, with its type, range, spellings and help text."""
