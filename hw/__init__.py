"""Accelerator hardware, in Amaranth: one component per file."""
