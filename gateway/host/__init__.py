"""Several processes on one host: what the keeper and its workers say to each other. Knows ports, never an adapter behind one."""
