"""The tests, a package of their own: others install one of the same name."""
