"""Everything durable: engine and unit of work, tables, records, audit trail, migrations."""

from estserver.store.engine import Store, Transaction, from_unix, to_unix
from estserver.store.migrate import migrate, require_current

__all__ = ["Store", "Transaction", "from_unix", "migrate", "require_current", "to_unix"]
