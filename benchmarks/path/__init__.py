"""Whole ways through the data plane, without daemon and registry."""
