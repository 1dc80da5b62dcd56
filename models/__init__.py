"""Networks and compression methods, in plain torch."""
