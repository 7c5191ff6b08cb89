"""How runs, plans, bills and checks look: pure functions from views to text and HTML."""
