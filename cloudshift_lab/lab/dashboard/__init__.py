"""The live dashboard: a Panel process of its own that reads the conductor's HTTP API."""
