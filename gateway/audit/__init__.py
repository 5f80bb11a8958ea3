"""The append-only record behind the `AuditLog` port."""
