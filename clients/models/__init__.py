"""Models. Each class takes what it needs of the data (``shape``, ``classes``, ``horizon``), then its options."""
