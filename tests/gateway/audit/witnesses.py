"""A witness for tests that follows C2SP tlog-witness over real sockets."""

import base64
import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.note import COSIGNATURE, BadNote, Checkpoint, Note, Signature, Verifier, cosigned
from gateway.audit.tree import check_consistency

Handler = Callable[[web.Request], Awaitable[web.Response]]


class CarefulWitness:
    """As the specification has it: trusts one log, remembers what it cosigned, cosigns what fits."""

    def __init__(self, name: str, *, secret: str = "", log: Verifier | None = None, size: int = 0) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{name} {secret}".encode()).digest())
        self.verifier = Verifier(name=name, public_key=self._key.public_key().public_bytes_raw(), kind=COSIGNATURE)
        self.log = log  # None: it knows no log yet
        self.size, self.root = size, b""
        self.requests = 0

    async def add_checkpoint(self, request: web.Request) -> web.Response:
        self.requests += 1
        head, _, signed = (await request.read()).partition(b"\n\n")
        old, *encoded = head.decode().split("\n")
        old_size = int(old.removeprefix("old "))
        note = Note.parse(signed)
        checkpoint = Checkpoint.parse(note.text)
        if self.log is None or checkpoint.origin != self.log.name:
            return web.Response(status=404)
        try:
            note.verified([self.log])
        except BadNote:
            return web.Response(status=403)
        if old_size > checkpoint.size:
            return web.Response(status=400)
        if old_size != self.size or (old_size == checkpoint.size and self.root not in {b"", checkpoint.root}):
            return web.Response(status=409, text=f"{self.size}\n", content_type="text/x.tlog.size")
        proof = [base64.b64decode(line, validate=True) for line in encoded]
        if old_size and not check_consistency(
            old_size=old_size, old_root=self.root, size=checkpoint.size, root=checkpoint.root, proof=proof
        ):
            return web.Response(status=422)
        if not old_size and proof:
            return web.Response(status=422)
        self.size, self.root = checkpoint.size, checkpoint.root
        return web.Response(text=self.cosignature(note.text).line())

    def cosignature(self, text: str, *, at_s: int | None = None) -> Signature:
        time_s = int(time.time()) if at_s is None else at_s
        made = self._key.sign(cosigned(text, time_s))
        return Signature(name=self.verifier.name, key_id=self.verifier.key_id, made=time_s.to_bytes(8, "big") + made)


@asynccontextmanager
async def serving(handler: Handler, *, port: int = 0):
    """A witness's submission prefix."""
    application = web.Application()
    application.router.add_post("/witness/add-checkpoint", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/witness"
    finally:
        await runner.cleanup()
