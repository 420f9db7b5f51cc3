"""Records, queues and run folders joined into rows, with SLURM's commands stood in for."""

import json
import os
from pathlib import Path

import pytest

from framework.errors import UserError
from slurm.cancel import cancel
from slurm.host import Host
from slurm.logs import Log
from slurm.queue import COLUMNS
from slurm.record import Record, RecordedJob, RecordedRun, read_records, write_record
from slurm.status import status


class Cluster:
    """Programs of SLURM that answer what a test tells them, and a runs folder."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.runs, self.programs = folder / "runs", folder / "programs"
        self.runs.mkdir()
        self.programs.mkdir()
        monkeypatch.setenv("PATH", f"{self.programs}:{os.environ['PATH']}")
        self.answer("squeue", "")
        self.answer("sacct", "", code=1)
        self.answer("scancel", "")

    def answer(self, program: str, output: str, code: int = 0, error: str = "") -> None:
        path = self.programs / program
        path.with_suffix(".out").write_text(output)
        path.write_text(f'#!/bin/sh\necho "$@" >> {path}.calls\ncat {path}.out\n[ -z "{error}" ] || '
                        f'echo "{error}" >&2\nexit {code}\n')
        path.chmod(0o755)

    def queue(self, *jobs: dict[str, str]) -> None:
        lines = ["".join(job.get(column, "").ljust(width) for column, width in COLUMNS.items()) for job in jobs]
        self.answer("squeue", "\n".join(lines) + "\n")

    def submitted(self, name: str, *jobs: RecordedJob, time: str = "2026-11-26T01:00:00+00:00") -> None:
        write_record(Host(), Record(name, str(self.runs / name / "job"), "mine", time, "abc", jobs))

    def run(self, folder: str, *steps: int, done: bool = False) -> None:
        (self.runs / folder).mkdir(parents=True, exist_ok=True)
        rows = [{"kind": "train", "step": step, "loss": 3.0, "tokens": 100 * step, "tokens_per_second": 50.0}
                for step in steps]
        lines = [*map(json.dumps, [*rows, {"kind": "eval", "step": 3}]), '{"kind": "tr']  # one is being written
        (self.runs / folder / "metrics.jsonl").write_text("\n".join(lines))
        if done:
            (self.runs / folder / "DONE").write_text(f"{steps[-1]}\n")

    def rows(self, name: str | None = None) -> list:
        return status(Host(), str(self.runs), name).rows


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def job(name: str, *ids: str, runs: tuple[str, ...] = (), steps: int = 10) -> RecordedJob:
    return RecordedJob(name, ids, tuple(RecordedRun(run, steps) for run in runs))


def test_a_running_task_has_its_speed_and_the_time_that_is_left(cluster: Cluster) -> None:
    cluster.submitted("a", job("a", "12", runs=("a",)))
    cluster.queue({"JobArrayID": "12", "State": "RUNNING", "RestartCnt": "2", "TimeUsed": "1:00", "TimeLimit": "2:00"})
    cluster.run("a", 1, 2, 4)
    row, = cluster.rows()
    assert (row.state, row.restarts, row.elapsed, row.limit, row.job) == ("RUNNING", 2, "1:00", "2:00", "12")
    assert (row.progress.step, row.progress.loss) == (4, 3.0)
    assert row.progress.seconds_left == pytest.approx(6 * 100 / 50)


def test_tasks_of_an_array_have_rows_of_their_own_and_say_why_they_wait(cluster: Cluster) -> None:
    cluster.submitted("grid", job("cells", "7", runs=("grid/x", "grid/y")))
    cluster.queue({"JobArrayID": "7_0", "State": "COMPLETED"},
                  {"JobArrayID": "7_1", "State": "PENDING", "Reason": "(Nodes required for job are DOWN, DRAINED)"})
    cluster.run("grid/x", 9, 10, done=True)
    finished, waiting = cluster.rows("grid")
    assert (finished.name, finished.state, finished.progress.finished) == ("grid/x", "FINISHED", True)
    assert (waiting.name, waiting.state) == ("grid/y", "PENDING") and "DOWN, DRAINED" in waiting.reason


def test_watching_ends_when_nothing_is_active(cluster: Cluster, upmix) -> None:
    """Each change is printed once where no terminal watches."""
    cluster.submitted("a", job("a", "12", runs=("a",)))
    cluster.run("a", 1, 2)
    states = cluster.programs / "squeue"
    row = "".join({"JobArrayID": "12", "State": "@"}.get(column, "").ljust(width) for column, width in COLUMNS.items())
    states.write_text(f"""#!/bin/sh
echo x >> {states}.calls
case $(wc -l < {states}.calls) in 1|2) state=RUNNING;; *) state=FAILED;; esac
echo '{row}' | sed "s/@/$state/"
""")
    code, out, _ = upmix("status", "a", "--watch", "--every", "0.5", "--runs-dir", cluster.runs)
    assert code == 0
    assert [line.split()[3] for line in out.splitlines()] == ["state", "RUNNING", "state", "FAILED"]


def test_of_a_chain_the_link_that_is_active_counts(cluster: Cluster) -> None:
    cluster.submitted("c", job("c", "1", "2", "3", runs=("c",)))
    cluster.queue({"JobArrayID": "1", "State": "TIMEOUT"}, {"JobArrayID": "2", "State": "RUNNING"},
                  {"JobArrayID": "3", "State": "PENDING", "Reason": "Dependency"})
    assert [(row.job, row.state) for row in cluster.rows()] == [("2", "RUNNING")]


def test_sacct_knows_what_squeue_has_forgotten(cluster: Cluster) -> None:
    cluster.submitted("a", job("a", "12", runs=("a",)))
    assert [(row.state, row.job) for row in cluster.rows()] == [("UNKNOWN", "12")]
    cluster.answer("sacct", "12|CANCELLED by 1000|0:9|00:01:00|01:00:00\n")
    assert [(row.state, row.reason) for row in cluster.rows()] == [("CANCELLED", "exit code 0:9")]


def test_without_slurm_run_folders_still_speak(cluster: Cluster, upmix) -> None:
    cluster.submitted("a", job("a", "12", runs=("a",)))
    cluster.run("a", 9, 10, done=True)
    cluster.run("alone", 1, 2)
    (cluster.runs / "alone/recipe.yaml").write_text("")
    cluster.answer("squeue", "", code=1, error="Unable to contact slurm controller")
    found = status(Host(), str(cluster.runs))
    assert [(row.name, row.state) for row in found.rows] == [("a", "FINISHED"), ("alone", "LOCAL")]
    assert "Unable to contact" in found.silence
    code, out, err = upmix("status", "--runs-dir", cluster.runs)
    assert code == 0 and "FINISHED" in out and "no SLURM answers here" in err


def test_submissions_come_oldest_first_and_names_that_are_none_are_refused(cluster: Cluster, upmix) -> None:
    cluster.submitted("late", job("late", "2", runs=("late",)), time="2026-11-26T02:00:00+00:00")
    cluster.submitted("early", job("early", "1", runs=("early",)))
    assert [row.submission for row in cluster.rows()] == ["early", "late"]
    for verb in ("status", "cancel", "logs"):
        code, _, err = upmix(verb, "nothing", "--runs-dir", cluster.runs)
        assert code == 2 and err.count("\n") == 1 and "allowed: a name that `upmix status` lists" in err


def test_a_damaged_record_is_one_line(cluster: Cluster) -> None:
    cluster.submitted("a", job("a", "12", runs=("a",)))
    path = cluster.runs / "a/job/submission.json"
    good = path.read_text()
    newer, foreign = good.replace('"format": 1', '"format": 2'), good.replace('"runs": [', '"runs": [3, ')
    assert good not in (newer, foreign)
    for text in ("", "[]", good[:40], newer, foreign):
        path.write_text(text)
        with pytest.raises(UserError, match="damaged; allowed: what `upmix submit` wrote"):
            read_records(Host(), str(cluster.runs))


def test_cancel_takes_what_is_active_alone(cluster: Cluster) -> None:
    cluster.submitted("grid", job("cells", "7", runs=("grid/x", "grid/y", "grid/z")))
    cluster.queue({"JobArrayID": "7_0", "State": "COMPLETED"}, {"JobArrayID": "7_1", "State": "PENDING"},
                  {"JobArrayID": "7_2", "State": "RUNNING"})
    assert cancel(Host(), str(cluster.runs), "grid", "y") == ["7_1"]
    assert cancel(Host(), str(cluster.runs), "grid") == ["7_1", "7_2"]
    assert (cluster.programs / "scancel.calls").read_text() == "7_1\n7_1 7_2\n"
    with pytest.raises(UserError, match="has no task 'w'; allowed: x, y, z"):
        cancel(Host(), str(cluster.runs), "grid", "w")


def test_logs_go_on_where_they_were_read(cluster: Cluster) -> None:
    cluster.submitted("a", job("a", "1", "2", runs=("a",)))
    log = cluster.runs / "a/job/log/1.out"
    log.parent.mkdir()
    log.write_bytes(b"first \xff\n")
    cluster.queue({"JobArrayID": "1", "State": "RUNNING"})
    read = Log(Host(), str(cluster.runs), "a", None)
    assert read.read() == [b"first \xff\n", b""]
    with log.open("ab") as file:
        file.write(b"second\n")
    assert read.read() == [b"second\n", b""]
    assert not read.is_over()
    cluster.queue({"JobArrayID": "1", "State": "FAILED"})
    assert read.is_over()
