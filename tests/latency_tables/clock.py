"""A clock for tests that time nothing real."""

from __future__ import annotations

from dataclasses import dataclass

from latency_tables.stopwatch import SystemClock


@dataclass
class FakeClock(SystemClock):
    """Stands still unless a run moves it."""

    wall: float = 0.0
    cpu: float = 0.0

    def wall_ns(self) -> int:
        return round(self.wall)

    def cpu_ns(self) -> int:
        return round(self.cpu)
