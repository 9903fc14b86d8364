"""The inference engine: the llama context, its slots and the scheduler. It works on tokens, without HTTP or JSON."""
