"""The router: find a request's model, make sure it runs, forward the request. Loads no model and uses no GPU itself."""
