"""Models. Each class takes ``shape`` and ``classes`` of the data, then its own options."""
