"""Sans-IO codecs, one API dialect a module: bytes in, values out; values in, bytes out. Knows no socket and no clock."""
