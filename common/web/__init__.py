"""HTTP server code that router and worker share: application, API keys, sockets, error formats, stored responses."""
