"""Single rooms of the data plane, timed by pytest-benchmark: `make bench-micro`."""
