"""Fleets of gateways on one store, in virtual time: what the real leases cost there. Knows gateway and policy."""
