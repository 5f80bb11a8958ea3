"""Sockets: the public server, the admin server and the client to the backends. All of aiohttp is in here."""
