"""Board designs under Verilator, serial line included."""
