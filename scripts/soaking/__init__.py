"""The soak test: runs the whole program under random load, kills and edits, and checks what it guarantees."""
