"""Whole overlays side by side between two namespaces: `python -m benchmarks.rivals --help`.

places.py     the two nodes, the link between them, its offloads
contenders.py what is compared: each gives node 1 an address at which it reaches node 2
traffic.py    senders and receivers that are the same for all; a program of its own, started inside the nodes
loads.py      the loads, and what is read off each
plan.py       which contender under which load in which link mode, and the order of the rounds
__main__.py   the command line
"""
