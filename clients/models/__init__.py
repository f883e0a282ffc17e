"""Models. Each takes of the data what it needs (``shape``, ``classes``, ``horizon``), then its options."""
