"""Deterministic simulation of the ledger side: the real leases, tick, refills and recovery in a world of seeded faults.

Knows gateway and policy; neither knows it. A program of its own and no load test: those are black boxes and import nothing
of ours.
"""
