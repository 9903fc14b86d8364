"""What router and worker share as HTTP servers: the application, keys, listening, error envelopes, stored responses."""
