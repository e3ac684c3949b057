"""Power failures while features are added, built, dropped and repaired, and while tables go.

Each operation runs once through the public API; every crash state is derived from the calls it made,
see ``featurestore.testing.crash_states``.
"""

from __future__ import annotations

from featurestore.testing.power_failures import PowerFailureTests


class TestPowerFailures(PowerFailureTests):
    file = "features"
