"""The Hydra config tree, and what turns a composed config into objects."""
