"""Faults of etcd under traffic: what daemons do meanwhile, measured; `make test-faults` strikes a hundred times."""
