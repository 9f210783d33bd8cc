"""Benchmarks: micro/ times single rooms, path/ runs the data plane alone, rivals/ compares whole overlays."""
