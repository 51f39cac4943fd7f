"""The C library's malloc: what a process keeps of memory that nobody uses any more."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3), from glibc's malloc.h."""
_LARGE = 1 << 20
_ARENAS = 2
_library = ctypes.CDLL(None)


def keep_little() -> None:
    """From now on keep little of what is freed. To be called before there are threads.

    Blocks of a megabyte and more go back at once. glibc does so at first, but takes each such block
    that is freed for the new measure of what is large, up to 32 MiB. From the second PIN on it
    keeps the 19 MiB that Argon2id works in, twice where small blocks of other threads get in
    between, and `release_pages` does not get at them: 50 MB of a worker for half a PIN's computing
    time.

    Threads share what lies free: one arena for the first, one for all others. By itself glibc has
    eight for each core, so that nobody waits for another; here they wait for the interpreter.
    """
    if hasattr(_library, "mallopt"):
        _library.mallopt(_M_ARENA_MAX, _ARENAS)
        _library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        # Setting one stops the other from following it; twice as much is glibc's own rule.
        _library.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE)


def release_pages() -> None:
    """Give back pages that lie free between others; takes milliseconds.

    glibc by itself gives back only what lies at the end: of a busy hour most would stay for good.
    """
    if hasattr(_library, "malloc_trim"):
        _library.malloc_trim(0)
