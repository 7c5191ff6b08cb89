"""Rows that ranks and agents emit, their way to the conductor, and the DuckDB store they end in.

Import from the modules: ``schema`` and ``batch`` and ``spool`` need no DuckDB, only ``store`` does.
"""
