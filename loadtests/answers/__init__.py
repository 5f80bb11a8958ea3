"""What real answers cost: bits charged per byte of text under every code, measured through a real gateway."""
