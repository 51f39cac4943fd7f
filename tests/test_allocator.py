"""Memory that nobody uses any more goes back to the system. In processes of their own: it is set
for a whole process, and no other test's memory shall count."""

import subprocess
import sys

_BEGINNING = """
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from estserver import allocator

def megabytes():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1e3
"""
_HASH = """
allocator.keep_little()

def hash_pin():
    Argon2id(salt=bytes(16), length=32, iterations=1, lanes=1, memory_cost=19 * 1024).derive(b"pin")

with ThreadPoolExecutor(1) as thread:
    before = megabytes()
    for _ in range(4):
        thread.submit(hash_pin).result()
    print(megabytes() - before)
"""
_LEAVE_HOLES = """
blocks = [bytes(4096) for _ in range(10_000)]
blocks = blocks[::50]
before = megabytes()
allocator.release_pages()
print(before - megabytes())
"""


def _measure(program: str) -> float:
    child = subprocess.run(
        [sys.executable, "-c", _BEGINNING + program], capture_output=True, check=True, text=True
    )
    return float(child.stdout)


def test_what_a_pin_is_hashed_in_is_not_kept() -> None:
    assert _measure(_HASH) < 5


def test_pages_that_lie_free_between_others_are_given_back() -> None:
    assert _measure(_LEAVE_HOLES) > 20
