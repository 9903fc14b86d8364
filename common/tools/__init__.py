"""Tools that run on the server: built-in tools, tools of MCP servers, and the proxy for browser pages."""
