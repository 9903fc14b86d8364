"""Jobs, slots and the scheduler: select the tokens of the next batch, decode it, and turn results into text."""
