"""Boards and FPGA flows."""
