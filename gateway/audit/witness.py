"""Witnesses (C2SP tlog-witness): others who sign that they have seen a checkpoint, and only ones that fit what they saw before.

What makes a log's operator honest about the past is that somebody else remembers it: a witness that has cosigned a size
never cosigns a smaller or another one. Asking can fail; nothing of what left depends on it at once.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from gateway.audit.note import SIZE_MAX, BadNote, Checkpoint, Note, Signature, signatures
from gateway.audit.quorum import Witness

WITNESS_TIMEOUT_S = 10.0  # for one checkpoint at one witness, all tries together
ANSWER_BYTES_MAX = 64 * 1024  # a few signature lines; a post-quantum one is nearly 7 kB
TRIES = 2  # the second with the size that the witness has told
_SIZE = re.compile(rb"(0|[1-9][0-9]{0,18})\n")

# Answers the consistency proof from an older size to the one of the checkpoint at hand (`tree.consistency_proof`).
Prove = Callable[[int], Sequence[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned:
    """What asking came to: a verified cosignature of each witness that gave one, and what went wrong at the others, by name."""

    signatures: tuple[Signature, ...]
    faults: Mapping[str, str]
    contradicted: tuple[str, ...]  # of those, who have cosigned something else: the log lost or changed entries

    def under(self, note: Note) -> Note:
        """The note with these cosignatures below its own signatures."""
        return Note(text=note.text, signatures=note.signatures + self.signatures)


class WitnessFailed(Exception):
    """A witness did not cosign."""


class Contradicted(WitnessFailed):
    """It has cosigned something else under this log's name."""


class Witnesses:
    """Asks every witness at once. One owner: what a witness was last seen to have is remembered here, and nowhere else."""

    def __init__(self, witnesses: Sequence[Witness], *, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._sizes = dict.fromkeys(witnesses, 0)  # that each has cosigned; it corrects us where we are wrong

    async def cosign(self, note: Note, prove: Prove) -> Cosigned:
        """Ask for cosignatures of a checkpoint. Never raises for what a witness did, and ends within `WITNESS_TIMEOUT_S`.

        Proofs are made in a thread. What `prove` raises is raised, in a group.
        """
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask(witness, note, prove)) for witness in self._sizes]
        results = [task.result() for task in asked]
        answered = list(zip(self._sizes, results, strict=True))
        return Cosigned(
            signatures=tuple(found for found in results if isinstance(found, Signature)),
            faults={witness.name: str(found) for witness, found in answered if not isinstance(found, Signature)},
            contradicted=tuple(witness.name for witness, found in answered if isinstance(found, Contradicted)),
        )

    async def _ask(self, witness: Witness, note: Note, prove: Prove) -> Signature | WitnessFailed:
        """The cosignature of one witness, or what went wrong."""
        try:
            async with asyncio.timeout(WITNESS_TIMEOUT_S):
                return await self._cosignature(witness, note, prove)
        except TimeoutError:
            return WitnessFailed(f"no answer within {WITNESS_TIMEOUT_S:g} s")
        except WitnessFailed as fault:
            return fault
        except (BadNote, aiohttp.ClientError, OSError) as fault:
            return WitnessFailed(str(fault) or type(fault).__name__)

    async def _cosignature(self, witness: Witness, note: Note, prove: Prove) -> Signature:
        size = Checkpoint.parse(note.text).size
        for _ in range(TRIES):
            old_size = self._sizes[witness]
            if old_size > size:
                self._sizes[witness] = 0  # ask it again the next time: it may have been wrong
                raise Contradicted(
                    f"it has cosigned {old_size} entries of this log, which has {size}: the log lost entries, or was copied"
                )
            proof = await asyncio.to_thread(prove, old_size)
            status, answer = await self._post(witness, request(note, old_size=old_size, proof=proof))
            if status == 200:
                found = Note(text=note.text, signatures=signatures(answer.decode(errors="replace")))
                verified = found.verified([witness.verifier])
                self._sizes[witness] = size
                return max(verified, key=Signature.time_s)
            told = _SIZE.fullmatch(answer)
            if status == 422 or (status == 409 and told is not None and int(told[1]) == old_size == size):
                raise Contradicted(
                    f"it has cosigned {old_size} other entries of this log: the log was changed, or was copied"
                )
            if status != 409 or told is None or int(told[1]) > SIZE_MAX:
                raise WitnessFailed(f"it answered {status}")
            self._sizes[witness] = int(told[1])
        raise WitnessFailed("it changes its mind about the size that it has cosigned")

    async def _post(self, witness: Witness, body: bytes) -> tuple[int, bytes]:
        url = f"{witness.url.rstrip('/')}/add-checkpoint"
        async with self._session.post(url, data=body, allow_redirects=False) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > ANSWER_BYTES_MAX:
                    raise WitnessFailed(f"it answered with more than {ANSWER_BYTES_MAX} bytes")
            return response.status, bytes(answer)


def request(note: Note, *, old_size: int, proof: Sequence[bytes]) -> bytes:
    """The body of add-checkpoint."""
    lines = [f"old {old_size}", *(base64.b64encode(sibling).decode() for sibling in proof), "", ""]
    return "\n".join(lines).encode() + note.encode()
