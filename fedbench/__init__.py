"""fedbench: which federated method holds up when clients' data differ, at what cost, and how surely."""

import os

# Neither Flower nor Ray reports home from a testbed.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's coming default, chosen now so that it does not warn about it.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
