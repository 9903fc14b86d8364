"""Worker processes and external programs: start, pipes, health, stop."""
