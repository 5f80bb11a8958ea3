"""What the engine is asked for and what it answers: token ids, never text."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable

from inference.kv import KvCache
from inference.sampling import SamplingParams
from inference.steering.applied import Applied
from inference.steering.gates import GateReader
from inference.steering.program import CompiledSteering
from inference.steering.table import SteeredSpan, SteeringTable


class EndReason(enum.Enum):
    """Why the engine let a request go."""

    STOPPED = "stopped"  # its own `on_token` said so
    LENGTH = "length"  # `max_tokens` were sampled
    CANCELLED = "cancelled"
    DIVERGED = "diverged"  # its steering drove the activations out of the range of numbers: there is no next token
    FAILED = "failed"  # a fault of the engine; the log has the traceback


class RefusedReason(enum.Enum):
    """Why the engine did not take a request. A refused request has cost no forward pass."""

    QUEUE_FULL = "queue_full"
    KV_MEMORY = "kv_memory"
    STOPPING = "stopping"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused:
    reason: RefusedReason
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One sequence to continue. Both callbacks run in the engine's thread and must be quick.

    on_token(id) → True to end the request with this token. on_end is called exactly once, last, whatever happens.
    cache_salt: what other requests remembered of their prompts is used only if they had the same.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    steering: CompiledSteering | None
    on_token: Callable[[int], bool]
    on_end: Callable[[EndReason, Applied], None]
    cache_salt: str = ""

    @property
    def kv_tokens(self) -> int:
        """Tokens of key-value memory reserved from admission to end."""
        return len(self.prompt_ids) + self.max_tokens


class Handle:
    """The submitter's grip on a request. `cached_tokens` of its prompt were not run; final once the first token came."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self.cached_tokens = 0

    def cancel(self) -> None:
        """Ask for the end; takes effect before the engine's next step. Idempotent, callable from any thread."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()


@dataclasses.dataclass(kw_only=True, eq=False)
class Sequence:
    """A request inside the engine. Owned by the engine's thread."""

    request: EngineRequest
    handle: Handle
    cache: KvCache | None = None  # from admission on
    last_token_id: int | None = None  # sampled, not yet run; None until the prompt is done
    generated: int = 0
    applied: Applied = dataclasses.field(default_factory=Applied)
    is_restored: bool = False  # whether what was known of the prompt has been copied in
    piece_names: tuple[bytes, ...] | None = None  # of the prompt, in the prefix cache; None until they are needed
    gates: tuple[bool, ...] | None = None  # None until they were read; () from the start if there are none
    gate_reader: GateReader | None = None  # while they are read
    tables: list[SteeringTable] = dataclasses.field(default_factory=list)  # of the prompt's pieces, not yet settled

    def __post_init__(self) -> None:
        steering = self.request.steering
        if steering is None or not steering.gates:
            self.gates = ()

    def steered_span(self, token_ids: tuple[int, ...], *, start: int) -> SteeredSpan:
        """The next tokens of this sequence, the first at absolute position `start`."""
        assert self.gates is not None
        return SteeredSpan(
            token_ids=token_ids,
            start=start,
            prompt_tokens=len(self.request.prompt_ids),
            steering=self.request.steering,
            applied=self.applied,
            gates=self.gates,
        )

    def settle(self) -> None:
        """Book what was applied to the prompt so far. Waits for the device."""
        for table in self.tables:
            table.settle()
        self.tables.clear()

    @property
    def position_next(self) -> int:
        """Absolute position of the next token to be sampled."""
        return len(self.request.prompt_ids) + self.generated
