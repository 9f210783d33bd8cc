"""Tests of the control plane, a file per module."""
