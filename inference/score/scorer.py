"""One thread that runs the model over waiting texts, a bounded batch of windows at a time."""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from inference.limits import SCORE_QUEUE_TOKENS_MAX
from inference.loading import LoadedModel
from inference.score.forward import modelled_bits
from inference.score.measure import charge_bits
from inference.score.segmentation import TokenPath
from inference.score.windows import Window, window_tokens, windows

_log = logging.getLogger("inference.score")


class QueueFullError(Exception):
    """`SCORE_QUEUE_TOKENS_MAX` tokens are waiting already."""


class StoppedError(Exception):
    """The scorer is ending; the text was not scored."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """`bits` is charged. `modelled_bits` are those of the text's tokens, then of END, before any surcharge."""

    bits: int
    symbols: int
    modelled_bits: tuple[float, ...]


@dataclasses.dataclass(kw_only=True, eq=False)
class _Job:
    """One text on its way. `future` is the caller's."""

    path: TokenPath
    waiting: collections.deque[Window]
    future: Future[Score]
    modelled_bits: list[float] = dataclasses.field(default_factory=list)

    @property
    def modelled_symbols(self) -> int:
        """The text's tokens, and END."""
        return len(self.path.token_ids) - self.path.prompt_tokens + 1

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Scorer:
    """Start with `start`, end with `stop`. `submit` may be called from any thread.

    Texts take turns window by window, so that a long one delays a short one by a batch at most.
    """

    def __init__(self, loaded: LoadedModel, *, batch_tokens_max: int) -> None:
        self._model, self._end_ids = loaded.model, loaded.end_ids
        self._window_tokens = window_tokens(loaded.config.context_tokens)
        self._batch_tokens_max = batch_tokens_max
        self._lock = threading.Condition()
        self._jobs: collections.deque[_Job] = collections.deque()  # guarded by _lock
        self._tokens_waiting = 0  # guarded by _lock
        self._computing = 0  # jobs in the batch being run; guarded by _lock
        self._stopping = False  # guarded by _lock
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Fail what waits, then end the thread. Returns when the batch in progress is over."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        self._thread.join()

    def submit(self, paths: Sequence[TokenPath]) -> list[Future[Score]]:
        """Queue texts, all or none. A future ends with its score or a fault; its owner may cancel it.

        Raises QueueFullError or StoppedError.
        """
        jobs = [self._job(path) for path in paths]
        tokens = sum(window.tokens for job in jobs for window in job.waiting)
        with self._lock:
            if self._stopping:
                raise StoppedError
            # An empty queue takes anything: one request is bounded by the size of its body.
            if self._tokens_waiting and self._tokens_waiting + tokens > SCORE_QUEUE_TOKENS_MAX:
                raise QueueFullError
            self._jobs.extend(jobs)
            self._tokens_waiting += tokens
            self._lock.notify()
        return [job.future for job in jobs]

    @property
    def active_requests(self) -> int:
        """Texts waiting or in the batch being run."""
        with self._lock:
            return len(self._jobs) + self._computing

    def _job(self, path: TokenPath) -> _Job:
        plan = windows(prompt_tokens=path.prompt_tokens, tokens=len(path.token_ids), window=self._window_tokens)
        return _Job(path=path, waiting=collections.deque(plan), future=Future())

    def _run(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps the number per thread; this one is new
        while self._await_work():
            batch = self._next_batch()
            try:
                self._compute(batch)
            except Exception as error:  # noqa: BLE001 - a fault of one batch; the thread must live on
                _log.exception("scoring failed")
                for job, _ in batch:
                    job.fail(error)
            with self._lock:
                self._computing = 0
        with self._lock:
            for job in self._jobs:
                job.fail(StoppedError())
            self._jobs.clear()

    def _await_work(self) -> bool:
        with self._lock:
            while not (self._stopping or self._jobs):
                self._lock.wait()
            return not self._stopping

    def _next_batch(self) -> list[tuple[_Job, Window]]:
        batch: list[tuple[_Job, Window]] = []
        tokens = 0
        with self._lock:
            while self._jobs:
                job = self._jobs[0]
                if job.future.done():  # cancelled, or failed in an earlier batch
                    self._tokens_waiting -= sum(window.tokens for window in job.waiting)
                    self._jobs.popleft()
                    continue
                tokens += job.waiting[0].tokens
                if batch and tokens > self._batch_tokens_max:
                    break
                batch.append((job, job.waiting.popleft()))
                self._tokens_waiting -= batch[-1][1].tokens
                self._jobs.popleft()
                if job.waiting:
                    self._jobs.append(job)
            self._computing = len({id(job) for job, _ in batch})
        return batch

    def _compute(self, batch: Sequence[tuple[_Job, Window]]) -> None:
        stretches = [(job.path.token_ids, window) for job, window in batch]
        for (job, _), bits in zip(batch, modelled_bits(self._model, stretches, self._end_ids), strict=True):
            job.modelled_bits += bits
            if len(job.modelled_bits) == job.modelled_symbols and job.future.set_running_or_notify_cancel():
                job.future.set_result(_score(job))


def _score(job: _Job) -> Score:
    bits = charge_bits(modelled=job.modelled_bits, escapes=job.path.escapes)
    return Score(bits=bits, symbols=job.path.symbols, modelled_bits=tuple(job.modelled_bits))
