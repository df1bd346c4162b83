"""What attacks come to, with real clients against real processes."""
