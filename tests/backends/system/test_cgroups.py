"""CPU quotas of the cgroups around a process, of both versions, its own folder and those above it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.system import cgroups, procfs


def machine(monkeypatch: pytest.MonkeyPatch, root: Path, mounts: str, own: str, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", ".").replace("_of_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    told = {"/proc/self/mountinfo": mounts.replace("ROOT", str(root)), "/proc/self/cgroup": own}
    read = cgroups._text
    monkeypatch.setattr(cgroups, "_text", lambda path: told.get(str(path)) or read(path))


V2 = "30 23 0:26 / ROOT rw - cgroup2 cgroup2 rw\n"
V1 = "30 23 0:26 / ROOT rw - cgroup cgroup rw,cpu,cpuacct\n"


def test_the_narrowest_of_all_levels_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(
        monkeypatch, tmp_path, V2, "0::/a/b\n",
        a_of_cpu__max="150000 100000\n", a_of_b_of_cpu__max="max 100000\n", cpu__max="400000 100000\n",
    )  # fmt: skip
    assert cgroups.cpu_quota() == 1.5
    assert procfs.usable_cpus() == 1


def test_version_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"a_of_cpu.cfs_quota_us": "50000\n", "a_of_cpu.cfs_period_us": "100000\n", "cpu.cfs_quota_us": "-1\n"}
    machine(monkeypatch, tmp_path, V1, "3:cpu,cpuacct:/a\n2:memory:/x\n", **files)
    assert cgroups.cpu_quota() == 0.5
    assert procfs.usable_cpus() == 1


def test_no_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, tmp_path, V2, "0::/\n", cpu__max="max 100000\n")
    assert cgroups.cpu_quota() is None
    machine(monkeypatch, tmp_path, "", "")
    assert cgroups.cpu_quota() is None
