"""Every byte of a log's segments: frames, numbers, records as the tree has them, and the ciphertexts that they commit to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from gateway.audit.findings import Findings
from gateway.audit.frames import CIPHERTEXT, HEAD_BYTES, first_leaf_of, frames, later_write, unfinished_head
from gateway.audit.reading import LogDirectory, read_segment, sealed_in
from gateway.audit.tree import leaf_hash

_NAME = re.compile(r"[0-9]{8}\.log")


class VerifiedSegments:
    """Reads them once. `first` is the number of the first record that is in a segment: what is before it was deleted."""

    def __init__(
        self,
        log: LogDirectory,
        *,
        hash_of: Callable[[int], bytes | None],
        findings: Findings,
        progress: Callable[[int], None],
    ) -> None:
        self.first: int | None = None
        self.sealed = 0  # ciphertexts that are there, and committed to
        self.sealed_bytes = 0
        self._log = log
        self._hash_of = hash_of
        self._findings = findings
        self._next: int | None = None  # the number that the next segment must begin with, if that is known
        self._loose = 0  # ciphertexts that nothing commits to
        number: int | None = None
        for segment in log.segments:
            if not _NAME.fullmatch(segment.name):
                findings.found(segment, "is no name of a segment")
                continue
            if number is not None and int(segment.stem) != number + 1:
                findings.found(segment.with_name(f"{number + 1:08d}.log"), "is missing")
                self._next = None
            number = int(segment.stem)
            self._verify(segment, is_last=segment == log.segments[-1], progress=progress)
        self._verify_end()
        if self._loose:
            findings.remark(f"{self._loose} sealed batches that no record commits to, as a crash leaves them")

    def _verify_end(self) -> None:
        if self._log.size and not self._log.segments:
            self._findings.found(self._log.directory, f"has no segments, and {self._log.size} records are signed")
        elif self._next is not None and self._next < self._log.size:
            last = self._log.segments[-1]
            following = last.with_name(f"{int(last.stem) + 1:08d}.log")
            self._findings.found(
                last,
                f"the segments end before record {self._next}, and {self._log.size} are signed: its end was cut off, or"
                f" {following} and what may follow it are missing",
            )

    def _verify(self, segment: Path, *, is_last: bool, progress: Callable[[int], None]) -> None:
        data = read_segment(segment)
        if not data and not segment.exists():
            return  # retention has deleted it a moment ago: it is judged as what is deleted is
        first = first_leaf_of(data)
        if first is None:
            if is_last and unfinished_head(data):
                self._findings.remark(f"{segment}: was being created when the gateway ended")
                self._next = 0 if len(self._log.segments) == 1 else self._next
            else:
                self._findings.found(segment, "does not begin as a segment does")
                self._next = None
            return
        if self.first is None:
            self.first = first
            if first > self._log.size:
                self._findings.found(segment, f"begins with record {first}, and only {self._log.size} are signed")
        if self._next is not None and first != self._next:
            self._findings.found(
                segment, f"says that it begins with record {first}, and record {self._next} is the next"
            )
        number, end = self._verify_frames(segment, data, first, progress)
        self._next = number
        self._verify_rest(segment, data, end, is_last=is_last)

    def _verify_frames(
        self, segment: Path, data: bytes, first: int, progress: Callable[[int], None]
    ) -> tuple[int, int]:
        """The number of the record after its last one, and where its last whole frame ends."""
        number, end = first, HEAD_BYTES
        ciphertexts: dict[str, int] = {}  # their bytes
        in_order = True
        for found in frames(data):
            begin, end = end, found.end
            if found.kind == CIPHERTEXT:
                ciphertexts[sha256(found.payload).hexdigest()] = len(found.payload)
                continue
            lines = found.payload.split(b"\n")
            if in_order:  # else what follows would be found wrong for the same reason
                in_order = self._verify_lines(segment, lines, number, begin=begin, ciphertexts=ciphertexts)
            number += len(lines)
            progress(len(lines))
        self._loose += len(ciphertexts) if in_order else 0
        return number, end

    def _verify_lines(
        self, segment: Path, lines: Sequence[bytes], first: int, *, begin: int, ciphertexts: dict[str, int]
    ) -> bool:
        for number, line in enumerate(lines, start=first):
            known = self._hash_of(number)
            if known is not None and leaf_hash(line) != known:
                self._findings.found(segment, f"at byte {begin}: record {number} is not the one that the tree has")
                return False
            self._verify_sealed(segment, line, number, ciphertexts)
        return True

    def _verify_sealed(self, segment: Path, line: bytes, number: int, ciphertexts: dict[str, int]) -> None:
        sealed = sealed_in(line)
        if sealed is None:
            return
        size = ciphertexts.pop(sealed.sha256, None)
        if size is None:
            what = f"what record {number} sealed is not there: no ciphertext before it has SHA-256 {sealed.sha256}"
            self._findings.found(segment, what)
        elif size != sealed.bytes:
            self._findings.found(segment, f"record {number} says {sealed.bytes} bytes of a ciphertext that has {size}")
        else:
            self.sealed += 1
            self.sealed_bytes += size

    def _verify_rest(self, segment: Path, data: bytes, end: int, *, is_last: bool) -> None:
        """Behind the last whole frame: nothing; in the last segment zeros that were laid out, or what a crash tore."""
        rest = data[end:]
        if later_write(data, end):
            self._findings.found(segment, f"damaged at byte {end}, with whole records after it")
            self._next = None
        elif rest and not is_last:
            self._findings.found(
                segment, f"damaged at byte {end}: what follows is no record, and the segment was finished"
            )
            self._next = None
        elif rest.strip(b"\0"):
            self._findings.remark(
                f"{segment}: ends in {len(rest.rstrip(bytes(1)))} bytes of a record that was not finished, as a crash leaves"
                " one, or a copy that is made while a gateway writes; it never left"
            )
