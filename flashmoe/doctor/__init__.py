"""What this machine has, what is wrong with it and what to do: a report fit for a bug tracker. See `examine`."""

from flashmoe.doctor.findings import Finding
from flashmoe.doctor.report import Report, examine

__all__ = ["Finding", "Report", "examine"]
