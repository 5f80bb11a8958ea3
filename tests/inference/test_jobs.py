from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine import Engine
from inference.jobs import table as table_module
from inference.jobs.chore import JobChore, JobError, Work
from inference.jobs.job import JobKind, Status, job_of
from inference.jobs.table import JobExistsError, JobsFullError, JobTable, WatchersFullError
from inference.limits import JOB_WATCHERS_MAX, JOBS_WAITING_MAX
from inference.loading import LoadedModel
from inference.steering.store import ExistsError, StoreFullError


def opened(directory: Path | None = None, *ids: str) -> JobTable:
    jobs = JobTable(directory, clock=lambda: 1_800_000_000.9)
    for job_id in ids or ("j",):
        jobs.open(job_id, kind=JobKind.EXTRACT)
    return jobs


def pieces(
    *fractions: float, result: dict | None = None, fault: BaseException | None = None, trace: list | None = None
) -> Work:
    try:
        yield from fractions
        if fault is not None:
            raise fault
        return {"vector": "v"} if result is None else result
    finally:
        if trace is not None:
            trace.append("closed")


def test_a_job_goes_from_queued_over_running_to_succeeded():
    jobs = opened()
    seen = [jobs.get("j").document()]
    chore = JobChore(pieces(0.25, 0.5), jobs=jobs, job_id="j")
    seen += [jobs.get("j").document() for _ in chore]
    seen.append(jobs.get("j").document())
    assert [(one["status"], one["progress"]) for one in seen] == [
        ("queued", 0),
        ("running", 0.25),
        ("running", 0.5),
        ("succeeded", 1),
    ]
    assert seen[-1] == {
        "id": "j",
        "object": "job",
        "kind": "extract",
        "status": "succeeded",
        "progress": 1.0,
        "created_s": 1_800_000_000,
        "result": {"vector": "v"},
        "error": None,
    }


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (JobError("the sides are equal", code="degenerate"), "degenerate"),
        (ExistsError("v"), "vector_exists"),
        (StoreFullError("full"), "store_full"),
        (RuntimeError("secret text"), "internal_error"),
        (MemoryError(), "internal_error"),
    ],
)
def test_a_fault_of_the_work_ends_the_job_and_nothing_else(fault, code):
    jobs = opened()
    assert len(list(JobChore(pieces(0.5, fault=fault), jobs=jobs, job_id="j"))) == 1
    job = jobs.get("j")
    assert (job.status, job.error["code"], job.progress) == (Status.FAILED, code, 0.5)
    assert "secret" not in job.error["message"]


def test_a_result_that_is_not_json_fails_the_job(tmp_path: Path):
    jobs = opened(tmp_path)
    assert list(JobChore(pieces(result={"norm": float("nan")}), jobs=jobs, job_id="j")) == []
    assert jobs.get("j").error["code"] == "internal_error"
    assert JobTable(tmp_path).get("j").error["code"] == "internal_error"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 2), max_size=20))
def test_progress_never_falls_and_stays_within_bounds(fractions: list[float]):
    jobs = opened()
    before = 0.0
    for fraction in fractions:
        jobs.progress("j", fraction=fraction)
        assert before <= jobs.get("j").progress <= 1
        before = jobs.get("j").progress


def test_cancelling_a_running_job_takes_effect_before_its_next_piece_and_closes_the_work():
    jobs, trace = opened(), []
    chore = JobChore(pieces(0.1, 0.2, 0.3, trace=trace), jobs=jobs, job_id="j")
    next(chore)
    assert jobs.cancel("j").status is Status.RUNNING
    assert trace == []
    assert list(chore) == []
    assert (jobs.get("j").status, jobs.get("j").progress, trace) == (Status.CANCELLED, 0.1, ["closed"])
    assert jobs.cancel("j").status is Status.CANCELLED


def test_cancelling_a_waiting_job_is_immediate_and_its_work_never_begins():
    jobs, trace = opened(), []
    assert jobs.cancel("j").status is Status.CANCELLED
    assert list(JobChore(pieces(0.1, trace=trace), jobs=jobs, job_id="j")) == []
    assert (jobs.get("j").status, trace) == (Status.CANCELLED, [])


def test_a_job_that_is_over_stays_as_it_is():
    jobs = opened()
    jobs.succeed("j", {"a": 1})
    jobs.fail("j", code="late", message="")
    jobs.progress("j", fraction=0.1)
    jobs.interrupt("j")
    assert jobs.cancel("j").status is Status.SUCCEEDED
    assert jobs.get("j").result == {"a": 1}
    assert jobs.cancel("none") is None


def test_after_a_crash_unfinished_jobs_are_reported_as_interrupted_and_finished_ones_as_they_were(tmp_path: Path):
    jobs = opened(tmp_path, "waiting", "running", "done", "stopped")
    next(JobChore(pieces(0.5, 0.6), jobs=jobs, job_id="running"))
    jobs.succeed("done", {"layer": 3})
    jobs.cancel("stopped")
    again = JobTable(tmp_path)  # nothing said goodbye to the old one
    assert again.get("done") == jobs.get("done")
    assert again.get("stopped") == jobs.get("stopped")
    for job_id in ("waiting", "running"):
        assert (again.get(job_id).status, again.get(job_id).error["code"]) == (Status.FAILED, "interrupted")
    assert JobTable(tmp_path).all() == again.all()  # and it stays that way
    with pytest.raises(JobExistsError):
        again.open("done", kind=JobKind.EVALUATE)


def test_files_that_are_no_jobs_are_set_aside(tmp_path: Path, caplog):
    opened(tmp_path, "good").succeed("good", {})
    good = json.loads((tmp_path / "good.json").read_text())
    broken = {
        "empty": "",
        "text": "{",
        "list": "[]",
        "other": json.dumps(good),  # the job of another name
        "status": json.dumps({**good, "id": "status", "status": "sleeping"}),
        "progress": json.dumps({**good, "id": "progress", "progress": 2}),
        "lacking": json.dumps({"id": "lacking"}),
    }
    for name, content in broken.items():
        (tmp_path / f"{name}.json").write_text(content)
    assert [job.id for job in JobTable(tmp_path).all()] == ["good"]
    assert {Path(record.file).stem for record in caplog.records} == broken.keys()
    assert {path.stem for path in (tmp_path / "quarantine").iterdir()} == broken.keys()


def test_a_document_read_back_is_the_same_job():
    jobs = opened()
    jobs.fail("j", code="x", message="y")
    assert job_of(json.loads(json.dumps(jobs.get("j").document()))) == jobs.get("j")


def test_waiting_jobs_are_bounded_and_the_oldest_finished_ones_are_forgotten(tmp_path: Path, monkeypatch):
    jobs = opened(tmp_path, *(f"j{number:02}" for number in range(JOBS_WAITING_MAX)))
    with pytest.raises(JobsFullError):
        jobs.open("more", kind=JobKind.EXTRACT)
    for job in jobs.all():
        jobs.succeed(job.id, {})
    monkeypatch.setattr(table_module, "JOBS_KEPT_MAX", JOBS_WAITING_MAX)
    jobs.open("more", kind=JobKind.EXTRACT)
    assert jobs.get("j00") is None
    assert jobs.all()[0].id == "j01"
    assert len(list(tmp_path.glob("*.json"))) == JOBS_WAITING_MAX
    assert not (tmp_path / "j00.json").exists()


def test_opening_and_cancelling_in_turn_does_not_fill_the_engine_with_work(monkeypatch):
    monkeypatch.setattr(table_module, "JOBS_KEPT_MAX", 4)
    jobs, chores = JobTable(), []
    for number in range(JOBS_WAITING_MAX):
        job = jobs.open(f"j{number}", kind=JobKind.EXTRACT)
        chores.append(JobChore(pieces(0.5), jobs=jobs, job_id=job.id))
        jobs.cancel(job.id)
    with pytest.raises(JobsFullError):
        jobs.open("more", kind=JobKind.EXTRACT)
    assert [list(chore) for chore in chores] == [[]] * JOBS_WAITING_MAX  # none was forgotten before its turn
    jobs.open("more", kind=JobKind.EXTRACT)
    assert [job.id for job in jobs.all()][-1] == "more"
    assert len(jobs.all()) == 4


def test_a_disk_that_refuses_keeps_a_job_out_but_does_not_stop_one_that_runs(tmp_path: Path, monkeypatch, caplog):
    jobs = opened(tmp_path, "running")

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_module, "write_file", refuse)
    with pytest.raises(OSError, match="No space"):
        jobs.open("new", kind=JobKind.EXTRACT)
    assert jobs.get("new") is None
    assert len(list(JobChore(pieces(0.5), jobs=jobs, job_id="running"))) == 1
    assert jobs.get("running").status is Status.SUCCEEDED
    assert "could not be written" in caplog.text
    monkeypatch.undo()
    assert JobTable(tmp_path).get("running").error["code"] == "interrupted"  # what the disk knows


def test_watchers_are_told_of_every_change_bounded_and_gone_when_they_leave():
    jobs, told = opened(), []
    with jobs.watching("j", lambda: told.append(jobs.get("j").progress)):
        list(JobChore(pieces(0.25, 0.25, 0.75), jobs=jobs, job_id="j"))
        assert told == [0.0, 0.25, 0.75, 1.0]  # running, then what changed
    assert jobs.watchers == 0
    watching = [jobs.watching("j", lambda: None) for _ in range(JOB_WATCHERS_MAX + 1)]
    for watch in watching[:-1]:
        watch.__enter__()
    with pytest.raises(WatchersFullError):
        watching[-1].__enter__()
    for watch in watching[:-1]:
        watch.__exit__(None, None, None)
    assert jobs.watchers == 0
    assert jobs._watchers == {}


def test_an_engine_that_stops_interrupts_the_job_that_runs_and_those_that_wait(tmp_path: Path, loaded: LoadedModel):
    engine = Engine(loaded.model, batch_rows_max=1, kv_tokens_max=64)
    jobs = opened(tmp_path, "first", "second")
    begun, trace = threading.Event(), []

    def endless() -> Work:
        try:
            while True:
                begun.set()
                yield 0.5
        finally:
            trace.append("closed")

    engine.add_chore(JobChore(endless(), jobs=jobs, job_id="first"))
    engine.add_chore(JobChore(pieces(0.5), jobs=jobs, job_id="second"))
    engine.start()
    assert begun.wait(10)
    engine.stop()
    assert trace == ["closed"]
    for job_id in ("first", "second"):
        assert jobs.get(job_id).error["code"] == "interrupted"
        assert JobTable(tmp_path).get(job_id) == jobs.get(job_id)


def test_jobs_are_told_apart_by_many_threads_at_once(tmp_path: Path):
    jobs = opened(tmp_path, "j")
    faults: list[BaseException] = []

    def hammer(number: int) -> None:
        try:
            for step in range(30):
                jobs.progress("j", fraction=step / 30)
                if number == 3 and step == 20:
                    jobs.cancel("j")
                with jobs.watching("j", lambda: None):
                    jobs.all()
        except BaseException as fault:  # noqa: BLE001 - shown below
            faults.append(fault)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert faults == []
    assert jobs.is_unwanted("j")
    jobs.stopped("j")
    assert JobTable(tmp_path).get("j").status is Status.CANCELLED
