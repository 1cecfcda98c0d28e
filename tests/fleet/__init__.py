"""Several workers on one spool and one PostgreSQL ledger, and what happens to them."""
