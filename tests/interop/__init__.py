"""Tests against foreign programs."""
