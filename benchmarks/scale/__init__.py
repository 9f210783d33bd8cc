"""How one daemon fares in a cluster of 10,000 nodes, and 200 that start at once: python -m benchmarks.scale."""
