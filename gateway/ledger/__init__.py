"""Stores of accounts behind the `Ledger` port: memory for tests and trials, SQLite for one host."""
