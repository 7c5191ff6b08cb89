"""Simulated clouds, stores and histories, and the contracts that every adapter must keep."""
