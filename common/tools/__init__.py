"""Tools that run on the server's side: the built-in ones, those of MCP servers, and the proxy of the page."""
