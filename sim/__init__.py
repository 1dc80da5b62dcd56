"""Simulators, from fast to exact."""
