"""What a run leaves behind: its directory, its metrics and its summary."""
