"""The commands of ``fedbench``: a file each, with what it is asked and what it does."""
