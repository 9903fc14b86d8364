"""The state of all models, and how events change it: one writer, without processes, timers or tasks."""
