"""Shared memory: regions, rings, buffers, lanes and queues that processes share. Knows nothing of devices."""
