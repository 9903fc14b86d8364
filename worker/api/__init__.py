"""The dialects, one file each: JSON in, `Generation` to the engine, events back out as JSON. They know no tokens' meaning."""
