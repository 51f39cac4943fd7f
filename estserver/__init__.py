"""Certificate enrollment server: one invitation, three doors (web, EST, ACME), one signing core."""

import sys

if "rich" not in sys.modules:
    # structlog imports rich, for tracebacks as we never print them: 70 ms and 6 MB of every worker.
    sys.modules["rich"] = None  # type: ignore[assignment]  # how importlib is told: not there
    import structlog  # noqa: F401 - see above

    del sys.modules["rich"]
