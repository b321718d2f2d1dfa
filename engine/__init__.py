"""Behaviour: what happens to a frame between two rings. Knows shm and nothing else of ours."""
