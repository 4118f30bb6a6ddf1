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
MOST_TABLES = 2
"""The stub's jumps are short ones."""


class Trampoline:
    """Owns one page of code. `address` is the callback to give to llama.cpp."""

    def __init__(self, handler: int, op: int, tables: Sequence[int] = ()) -> None:
        """`handler`: address of the full callback; `op`: the number of MUL_MAT_ID; `tables`: weights whose nodes matter
        as well, `MOST_TABLES` at most. Raises `OSError` where the system
        doesn't allow it, also for lack of a stub for this architecture."""
        if platform.machine() != "x86_64":
            raise OSError(f"no stub for {platform.machine()}")
        name, at_op = abi.NAME, abi.OP
        to_python = b"\x48\xb8" + struct.pack("<Q", handler) + b"\xff\xe0"  # mov rax, handler; jmp rax
        topk = (
            b"\x81\xbf" + struct.pack("<i", name + 8) + TOPK_PREFIX[8:12]  # cmp dword [rdi+name+8], "topk"
        )
        no = b"\x31\xc0\xc3"  # xor eax, eax; ret
        head = b"\xf3\x0f\x1e\xfa"  # endbr64
        self._idle = C.c_uint8(0)
        idle = (
            b"\x48\xb8" + struct.pack("<Q", C.addressof(self._idle))  # mov rax, &idle
            + b"\x80\x38\x00"  # cmp byte [rax], 0
        )  # fmt: skip
        prefix = (
            b"\x48\xb8" + TOPK_PREFIX[:8]  # mov rax, "ffn_moe_"
            + b"\x48\x39\x87" + struct.pack("<i", name)  # cmp [rdi+name], rax
        )  # fmt: skip
        product = b"\x81\xbf" + struct.pack("<iI", at_op, op)  # cmp dword [rdi+op], MUL_MAT_ID
        # jumps are forward over what follows
        tail = topk + b"\x74" + bytes([len(no)]) + no + to_python
        tail = prefix + b"\x75" + bytes([len(topk) + 2]) + tail  # jne no
        over = len(tail) - len(to_python)
        for table in tables:
            look = (
                b"\x48\xb8" + struct.pack("<Q", table)  # mov rax, table
                + b"\x48\x39\x87" + struct.pack("<i", abi.SRC)  # cmp [rdi+src], rax
            )  # fmt: skip
            tail = look + b"\x74" + bytes([over]) + tail  # je to_python
            over = len(tail) - len(to_python)
        tail = product + b"\x74" + bytes([over]) + tail  # je to_python
        tail = idle + b"\x75" + bytes([len(tail) - len(to_python) - len(no)]) + tail  # jne no
        over = len(tail) - len(to_python)
        code = head + b"\x40\x84\xf6" + b"\x74" + bytes([over]) + tail  # test sil, sil; je to_python
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

    def close(self) -> None:
        """Unmaps the page; only after the context was freed."""
        if self._page:
            libc.munmap(self._page, libc.PAGE)
            self._page = 0
