"""The gateway: what acts. Sockets, clocks, disks and stores are here; every decision is taken in `policy`.

Layers, each importing only those before it: `wire` (sans-IO codecs) <- `ports` <- `relay`, `tick`, `settle` <-
`edge`, `ledger`, `audit`, `meters` (siblings that never import each other) <- `app` <- `__main__`.
"""
