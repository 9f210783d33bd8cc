"""Nodes as namespaces on one machine: a whole overlay network in a box that leaves nothing behind."""
