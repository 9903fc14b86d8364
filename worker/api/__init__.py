"""The dialects, one file each: JSON in, `Generation` to the engine, events out as JSON. No token has a meaning here."""
