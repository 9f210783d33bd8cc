"""Tests of the data plane, a file per room."""
