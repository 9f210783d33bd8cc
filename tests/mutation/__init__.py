"""Takes each guard of the fast path out, one at a time, in a copy of the tree: a test that is named must fail then."""
