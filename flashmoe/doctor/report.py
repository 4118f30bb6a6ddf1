"""The whole report: facts by section, and findings."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from flashmoe import paths
from flashmoe.doctor import disk, machine, software
from flashmoe.doctor.findings import Finding, judge


class Report(Struct, frozen=True):
    """What `examine` found. Paths below the home folder begin with ``~``; there are no names, addresses or tokens."""

    versions: dict[str, str]
    os: dict[str, Any]
    cpu: dict[str, Any]
    memory: dict[str, Any]
    gpus: dict[str, Any]
    disk: dict[str, Any]
    llama_cpp: dict[str, Any]
    folders: dict[str, Any]
    config: dict[str, Any]
    history: dict[str, Any]
    terminal: dict[str, Any]
    environment: dict[str, str]
    models: dict[str, Any]
    guide: bool
    findings: tuple[Finding, ...] = ()


def examine(*, probe: bool = True) -> Report:
    """Looks at this machine (1 to 3 s; `probe` measures the disk). Raises nothing: what fails is in the report."""
    llama = software.llama()
    facts: dict[str, Any] = {
        "versions": software.versions(),
        "os": machine.system(),
        "cpu": machine.processor(),
        "memory": machine.memory(),
        "gpus": machine.gpus(llama.get("devices", ())),
        "disk": disk.disk(software.models_folder(), probe=probe),
        "llama_cpp": llama,
        "folders": software.folders(),
        "config": software.configuration(),
        "history": software.history(),
        "terminal": software.terminal(),
        "environment": software.environment(),
        "models": software.models(),
        "guide": paths.guide_model().exists(),
    }
    return Report(**facts, findings=tuple(judge(facts)))
