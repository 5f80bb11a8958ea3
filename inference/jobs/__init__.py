"""Work that takes longer than a request: its state on disk, its pieces in the engine's thread."""
