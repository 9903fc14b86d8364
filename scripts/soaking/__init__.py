"""A long look at the whole program: random load, kills and edits, while a verifier holds it to its promises."""
