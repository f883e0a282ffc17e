"""Ways to divide rows among clients: one file a skew, one frozen dataclass a file."""
