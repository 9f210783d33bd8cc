"""Whole overlays side by side between two namespaces: `python -m benchmarks.rivals --help`.

places.py     the two nodes, the link between them, its offloads
contenders/   what is compared: each gives node 1 an address at which it reaches node 2
traffic.py    senders and receivers that are the same for all; a program of its own, started inside the nodes
loads.py      the loads, from bulk.py (TCP), datagrams.py, rates.py (a search) and footprint.py (start and memory)
drops.py      what the kernel counts meanwhile
plan.py       which contender under which load in which link mode, the order of the rounds, how long it takes
machine.py    the record of machine and settings
run.py        goes through the plan; what cannot run is noted, and the rest goes on
__main__.py   the command line
"""
