"""Programs that measure the engine in its own process, without HTTP: what steering costs, and tokens a second."""
