"""The daemon that owns runs: journals, migration driver, HTTP API, and its thin client."""
