"""A few machine instructions in front of the router hook, so that Python is called for the nodes that matter alone.

llama.cpp asks its eval callback about every graph node, some 1,500 times a token, and each call into Python takes a
microsecond and the GIL. The stub answers "not needed" for all nodes but expert products and ``ffn_moe_topk-*``. It
reads three fields of the node whose offsets `abi.check` has verified. Only x86-64 has one; elsewhere, and where the
system forbids executable memory, Python is called for every node, which is slower and otherwise the same.
"""

from __future__ import annotations

import ctypes as C
import platform
import struct
from collections.abc import Sequence

from backends.streaming import abi
from backends.system import libc

TOPK_PREFIX = b"ffn_moe_topk-"
_JE, _JNE = b"\x0f\x84", b"\x0f\x85"

Part = bytes | tuple[bytes, str] | str
"""Machine code; a jump's opcode and the label that it goes to; a label."""


def assemble(parts: Sequence[Part]) -> bytes:
    """The code with its jumps."""
    places, at = {}, 0
    for part in parts:
        if isinstance(part, str):
            places[part] = at
        else:
            at += len(part) if isinstance(part, bytes) else len(part[0]) + 4
    code = b""
    for part in parts:
        if isinstance(part, bytes):
            code += part
        elif isinstance(part, tuple):
            code += part[0] + struct.pack("<i", places[part[1]] - len(code) - len(part[0]) - 4)
    return code


def _absolute(value: int) -> bytes:
    return b"\x48\xb8" + struct.pack("<Q", value)  # mov rax, value


class Trampoline:
    """Owns one page of code. `address` is the callback to give to llama.cpp."""

    def __init__(self, handler: int, op: int, tables: Sequence[int] = ()) -> None:
        """`handler`: address of the full callback; `op`: the number of MUL_MAT_ID; `tables`: weights whose nodes matter
        as well. Raises `OSError` where the system doesn't allow it, also for lack of a stub for
        this architecture."""
        if platform.machine() != "x86_64":
            raise OSError(f"no stub for {platform.machine()}")
        name = abi.NAME
        self._idle, self._silent, self._sure = C.c_uint8(0), C.c_uint8(0), C.c_uint8(0)
        self._stop = C.c_uint64(0)

        def flag(of: C.c_uint8) -> bytes:
            return _absolute(C.addressof(of)) + b"\x80\x38\x00"  # cmp byte [rax], 0

        parts: list[Part] = [
            b"\xf3\x0f\x1e\xfa",  # endbr64
            b"\x40\x84\xf6", (_JE, "python"),  # test sil, sil
            flag(self._idle), (_JNE, "no"),
            _absolute(C.addressof(self._stop)) + b"\x48\x3b\x38", (_JE, "yes"),  # cmp rdi, [rax]
            b"\x81\xbf" + struct.pack("<iI", abi.OP, op), (_JNE, "other"),  # cmp dword [rdi+op], MUL_MAT_ID
            flag(self._silent), (_JE, "python"),
            "no", b"\x31\xc0\xc3",  # xor eax, eax; ret
            "other",
        ]  # fmt: skip
        for table in tables:
            compare = b"\x48\x39\x87" + struct.pack("<i", abi.SRC)  # cmp [rdi+src], rax
            parts += [_absolute(table) + compare, (_JE, "python")]
        parts += [
            b"\x48\xb8" + TOPK_PREFIX[:8] + b"\x48\x39\x87" + struct.pack("<i", name), (_JNE, "no"),
            b"\x81\xbf" + struct.pack("<i", name + 8) + TOPK_PREFIX[8:12], (_JNE, "no"),
            flag(self._sure), (_JE, "python"),
            "yes", b"\xb8\x01\x00\x00\x00\xc3",  # mov eax, 1; ret
            "python", _absolute(handler) + b"\xff\xe0",  # jmp rax
        ]  # fmt: skip
        code = assemble(parts)
        self._page = libc.mmap(None, libc.PAGE, libc.PROT_RW, libc.PRIVATE | libc.ANON)
        try:
            C.memmove(self._page, code, len(code))
            libc.mprotect(self._page, libc.PAGE, libc.PROT_RX)
        except OSError:
            libc.munmap(self._page, libc.PAGE)
            raise
        self.address = self._page

    def rest(self, on: bool) -> None:
        """While on, no node is asked for at all."""
        self._idle.value = int(on)

    def silence(self, on: bool, stop: int = 0) -> None:
        """While on, expert products are none of Python's business, but for the node `stop`, which is asked for."""
        self._silent.value, self._stop.value = int(on), stop

    def sure(self, on: bool) -> None:
        """While on, every node that is named like a router's choice is asked for, without Python being asked whether
        it is."""
        self._sure.value = int(on)

    def close(self) -> None:
        """Unmaps the page; only after the context was freed."""
        if self._page:
            libc.munmap(self._page, libc.PAGE)
            self._page = 0
