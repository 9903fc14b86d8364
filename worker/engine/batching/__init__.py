"""Jobs, slots and the scheduler: which tokens go into the next batch, and what its results mean."""
