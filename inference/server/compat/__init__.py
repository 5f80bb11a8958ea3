"""Other servers' spellings of steering, each translated into our own spec; nothing behind the translation knows of them."""
