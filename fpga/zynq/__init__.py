"""Zynq: Vivado scripts and the PYNQ driver."""
