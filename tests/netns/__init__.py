"""Tests on real devices in network namespaces."""
