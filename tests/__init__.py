"""The tests: dataplane (a file per room), control (a file per module), netns (real devices), interop (others)."""
