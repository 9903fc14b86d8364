"""The supervisor: HTTP in, which model, is it up, forward. Never loads a model, never touches a GPU."""
