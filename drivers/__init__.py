"""Devices: what binds rings to interfaces and files. Knows shm and nothing else of ours."""
