"""Data sets, one module and one class each: the fields are the options, ``load()`` gives a Dataset."""
