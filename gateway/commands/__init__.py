"""The subcommands of `weir`, one module each. Each offers `add(parsers)`, which sets `run` to a function of its arguments."""
