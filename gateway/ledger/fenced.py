class FencedLedger: pass
