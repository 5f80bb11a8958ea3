"""Load that looks like users (locust), and programs that load a gateway for long, beyond capacity and before a failing backend."""
