"""From PyTorch modules to programs: one pass per file."""
