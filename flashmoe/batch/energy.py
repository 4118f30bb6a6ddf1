"""Energy of the processor packages, read from RAPL where the kernel lets us; unknown otherwise."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, of all processor packages; None where no counter can be read."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones: list[tuple[Path, int]] = []
        self._last: list[int] = []
        self._total = 0
        try:
            for zone in sorted(root.glob("intel-rapl:*")):
                if zone.name.count(":") != 1 or not (zone / "name").read_text().startswith("package"):
                    continue  # cores and DRAM are parts of their package
                self._zones.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
            self._last = [int(path.read_text()) for path, _ in self._zones]
        except (OSError, ValueError):
            self._zones = []

    def joules(self) -> float | None:
        """Call at least once a minute: the counters wrap."""
        if not self._zones:
            return None
        try:
            now = [int(path.read_text()) for path, _ in self._zones]
        except (OSError, ValueError):
            return None
        for i, (_, wrap) in enumerate(self._zones):
            self._total += (now[i] - self._last[i]) % (wrap + 1)
        self._last = now
        return self._total / 1e6
