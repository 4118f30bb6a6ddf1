"""Which memory was mapped meanwhile."""

from __future__ import annotations

from backends.system import libc


def test_what_was_mapped_since() -> None:
    assert libc.added([(10, 20)], [(10, 20), (40, 50)]) == [(40, 50)]
    assert libc.added([(10, 20), (30, 40)], [(5, 60)]) == [(5, 10), (20, 30), (40, 60)]
    assert libc.added([(0, 100)], [(10, 20)]) == []


def test_new_memory_is_found() -> None:
    before = libc.anonymous_ranges(0)
    at = libc.mmap(None, 64 << 20, libc.PROT_RW, libc.PRIVATE | libc.ANON)
    try:
        found = libc.anonymous_since(before, 64 << 20)
        assert any(start <= at and at + (64 << 20) <= end for start, end in found)
    finally:
        libc.munmap(at, 64 << 20)
