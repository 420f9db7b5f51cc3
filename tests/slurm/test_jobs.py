"""What becomes of jobs on a real SLURM: signals, preemption, lost nodes, arrays, chains. Training is stood in for."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import SlurmCluster
from tests.slurm.conftest import Desk, all_in

pytestmark = pytest.mark.slurm
SLOW = {"STEP_SECONDS": "0.1"}


@pytest.fixture(scope="module", autouse=True)
def long_run(slurm: SlurmCluster, tmp_path_factory) -> Iterator[Desk]:
    """A run longer than its time limit, which goes on on one node beside all tests of this file."""
    desk = Desk(tmp_path_factory.mktemp("long"), slurm)
    desk.submit("quickstart", "training.steps=500", "--name", "long",
                cluster=desk.cluster_file(time="1", signal_seconds=30, variables=SLOW))
    yield desk
    desk.leave()


def was_ended(log: str) -> bool:
    """SLURM's TERM reached the ranks or the batch script, whichever came first."""
    return "ended with 143" in log or "asked to by TERM" in log


def starts(desk: Desk, name: str) -> int:
    return desk.log(name).count("upmix: job ")


def test_a_run_that_is_warned_is_requeued_and_goes_on(desk: Desk) -> None:
    job, = desk.submit("quickstart", "training.steps=60", "--name", "run",
                       cluster=desk.cluster_file(variables=SLOW))["jobs"][0]["ids"]
    desk.wait_for_file("runs/run/started_0")
    desk.slurm.run("scancel", "--batch", "--signal=USR1", job)
    row, = desk.wait("run", all_in("FINISHED"))
    assert row["restarts"] == 1 and row["job"] == job and row["progress"]["step"] == 60
    assert starts(desk, "run") == 2
    assert "asked to by USR1" in desk.log("run")
    assert len(list((desk.folder / "runs/run/checkpoints").iterdir())) == 2, "the first start must have saved"


def test_only_the_array_task_that_was_warned_starts_again(desk: Desk) -> None:
    """The last one, whose SLURM_JOB_ID is the array's own."""
    submitted = desk.submit("quickstart", "training.steps=30", "--over", "optim.lr=1e-3,2e-3,4e-3", "--name", "grid",
                            cluster=desk.cluster_file(variables=SLOW))
    job, = submitted["jobs"][0]["ids"]
    desk.wait_for_file(f"runs/{desk.rows('grid')[-1]['name']}/started_0")
    desk.slurm.run("scancel", "--batch", "--signal=USR1", f"{job}_2")
    rows = desk.wait("grid", all_in("FINISHED"))
    assert [row["restarts"] for row in rows] == [0, 0, 1]
    assert starts(desk, "grid") == 4
    again = desk.call("submit", "quickstart", "training.steps=30", "--over", "optim.lr=1e-3,2e-3,4e-3", "--name",
                      "grid", "--cluster", "cluster.yaml")
    assert again.returncode == 0 and again.stderr.count("finished already") == 3


def test_preemption(desk: Desk) -> None:
    """A job of a higher partition takes both nodes that are left; the run saves, is requeued by SLURM, and ends."""
    job, = desk.submit("quickstart", "training.steps=40", "--name", "low",
                       cluster=desk.cluster_file(partition="low", variables=SLOW))["jobs"][0]["ids"]
    desk.wait_for_file("runs/low/started_0")
    high = desk.slurm.run("sbatch", "--parsable", "--partition=main", "--nodes=2", "--exclusive", "--output=/dev/null",
                          "--wrap=sleep 3").strip()
    row, = desk.wait("low", all_in("FINISHED"), seconds=90)
    assert row["restarts"] == 1
    assert was_ended(desk.log("low"))
    assert 0 < min(int(path.name[5:]) for path in (desk.folder / "runs/low/checkpoints").iterdir()) < 40
    ended = desk.slurm.run("squeue", "--noheader", "--states=all", f"--jobs={high}", "--Format=State:20").strip()
    assert ended == "COMPLETED"


def test_a_lost_node(desk: Desk) -> None:
    """No signal comes then; SLURM starts the job again by itself."""
    job, = desk.submit("quickstart", "training.steps=30", "--name", "lost",
                       cluster=desk.cluster_file(variables=SLOW))["jobs"][0]["ids"]
    desk.wait_for_file("runs/lost/started_0")
    node = desk.slurm.run("squeue", "--noheader", f"--jobs={job}", "--Format=NodeList:40").strip()
    desk.slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    # It comes back by itself where it had the time to (ReturnToService), and then there is nothing to resume.
    desk.slurm.run("scontrol", "update", f"nodename={node}", "state=resume", may_fail=True)
    row, = desk.wait("lost", all_in("FINISHED"))
    assert row["restarts"] == 1 and starts(desk, "lost") == 2


def test_a_run_that_never_gets_anywhere_is_given_up(desk: Desk) -> None:
    file = desk.cluster_file(restarts_without_progress=1, variables={"FAILS": "1"})
    desk.submit("quickstart", "training.steps=5", "--name", "broken", cluster=file)
    row, = desk.wait("broken", all_in("FAILED"))
    assert row["restarts"] == 1 and "given up: 2 starts from step 0" in desk.log("broken")
    assert "NonZeroExitCode" in row["reason"] or "exit code" in row["reason"]


def test_a_node_that_fails_its_check_is_named_and_no_step_is_taken(desk: Desk) -> None:
    sick = 'test "$SLURMD_NODENAME" != 127.0.1.2'
    file = desk.cluster_file(health_check=sick, restarts_without_progress=0, gpus_per_node=1,
                             variables={"CALLS": str(desk.folder / "calls")})
    desk.submit("quickstart", "training.steps=2", "--name", "sick", cluster=file)
    desk.wait("sick", all_in("FAILED"))
    assert "the health check failed on 127.0.1.2" in desk.log("sick") and "failed on 127.0.1.1" not in desk.log("sick")
    assert not (desk.folder / "calls").exists()
    well = desk.cluster_file(health_check=f"{sick} || true")
    desk.submit("quickstart", "training.steps=2", "--name", "well", cluster=well)
    desk.wait("well", all_in("FINISHED"))


def test_a_mistake_is_not_tried_again(desk: Desk) -> None:
    desk.submit("quickstart", "--name", "wrong", cluster=desk.cluster_file(variables={"FAILS": "2"}))
    row, = desk.wait("wrong", all_in("FAILED"))
    assert row["restarts"] == 0 and starts(desk, "wrong") == 1


def test_where_nothing_is_requeued_a_run_is_a_chain_of_jobs(desk: Desk) -> None:
    file = desk.cluster_file(requeue=False, links=3, variables=SLOW)
    ids = desk.submit("quickstart", "training.steps=40", "--name", "links", cluster=file)["jobs"][0]["ids"]
    assert len(ids) == 3
    desk.wait_for_file("runs/links/started_0")
    desk.slurm.run("scancel", "--batch", "--signal=USR1", ids[0])
    row, = desk.wait("links", all_in("FINISHED"))
    assert starts(desk, "links") >= 2 and row["progress"]["step"] == 40
    deadline = time.monotonic() + 30
    while "finished already" not in desk.log("links"):  # the last link finds nothing to do
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_slides_wait_for_their_trunk(desk: Desk) -> None:
    slides = ["optim.schedule=trapezoid", "optim.warmup_steps=2", "training.steps=30", "training.slides=[10,20]"]
    submitted = desk.submit("quickstart", *slides, "--name", "wsd", cluster=desk.cluster_file())
    assert [(job["name"], job["tasks"]) for job in submitted["jobs"]] == [("wsd-trunk", 1), ("wsd-slides", 2)]
    rows = desk.wait("wsd", all_in("FINISHED"))
    assert [(row["name"], row["progress"]["step"]) for row in rows] == [
        ("wsd", 30), ("wsd-slide-10", 10), ("wsd-slide-20", 20)]
    trunk, *slides = [(desk.folder / "runs" / name / "DONE").stat().st_mtime for name in
                      ("wsd", "wsd-slide-10", "wsd-slide-20")]
    assert all(each >= trunk for each in slides)


CHAIN = """
name: pipeline
chain:
  - {name: dense, train: upcycling/laptop_dense, set: {training.steps: 4, parallel.dp_shard: 1}}
  - {name: copies, run: "upcycle runs/dense --name 'a b $(x)'"}
  - {name: compare, run: report runs/dense, after: [dense]}
"""


def test_a_chain_runs_in_its_order(desk: Desk) -> None:
    (desk.folder / "chain.yaml").write_text(CHAIN)
    desk.submit("chain.yaml", cluster=desk.cluster_file(variables={"CALLS": str(desk.folder / "calls")}))
    desk.wait("pipeline", all_in("FINISHED", "COMPLETED"))
    called = [json.loads(line)[0][2:] for line in (desk.folder / "calls").read_text().splitlines()]
    assert called[0][0] == "train" and ["upcycle", "runs/dense", "--name", "a b $(x)"] in called
    assert sorted(call[0] for call in called) == ["report", "train", "upcycle"]


def test_what_follows_a_failure_never_runs(desk: Desk) -> None:
    (desk.folder / "chain.yaml").write_text(CHAIN)
    desk.submit("chain.yaml", cluster=desk.cluster_file(variables={"FAILS": "2"}))
    rows = desk.wait("pipeline", all_in("FAILED", "CANCELLED"))
    assert [row["state"] for row in rows] == ["FAILED", "CANCELLED", "CANCELLED"]


def test_cancel_saves_and_ends_all(desk: Desk) -> None:
    desk.submit("quickstart", "training.steps=600", "--seeds", "3", "--name", "many",
                cluster=desk.cluster_file(variables=SLOW, gpus_per_node=2))
    desk.wait_for_file(f"runs/{desk.rows('many')[0]['name']}/started_0")
    assert "cancelled" in desk.upmix("cancel", "many")
    rows = desk.wait("many", all_in("CANCELLED"))
    ran = [row for row in rows if row["progress"]["step"]]
    assert ran and all(row["restarts"] == 0 for row in rows)
    assert "no job waits or runs" in desk.upmix("cancel", "many")
    assert was_ended(desk.upmix("logs", "many"))


def test_of_two_submissions_of_one_run_one_is_refused(desk: Desk) -> None:
    file = desk.cluster_file(variables=SLOW)
    outcomes: list[subprocess.CompletedProcess] = []
    command = ("submit", "quickstart", "training.steps=30", "--name", "race", "--cluster", file)
    threads = [threading.Thread(target=lambda: outcomes.append(desk.call(*command))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.returncode for each in outcomes) == [0, 2], [each.stderr for each in outcomes]
    refused = next(each.stderr for each in outcomes if each.returncode)
    assert "another `upmix submit` is at work" in refused or "of the submission 'race' is" in refused
    third = desk.call(*command, "--resume")
    assert third.returncode == 2 and "allowed: a run that no job is on (`upmix cancel race`)" in third.stderr
    assert starts(desk, "race") <= 1


def test_why_a_job_waits_is_told(desk: Desk) -> None:
    desk.submit("quickstart", "--name", "waits", cluster=desk.cluster_file(sbatch={"hold": True}))
    row, = desk.wait("waits", all_in("PENDING"))
    assert row["reason"] == "JobHeldUser"
    assert "JobHeldUser" in desk.upmix("status", "waits")


def test_hostile_words_reach_the_job(desk: Desk) -> None:
    """Through sbatch, its spool and srun."""
    folder = desk.folder / "we ird $(touch PWNED) é'\"%j\nnew"
    folder.mkdir()
    inner = Desk(folder, desk.slurm)
    name = "r $(touch PWNED) `x` 漢 'q' \"%A\""
    inner.submit("quickstart", "training.steps=2", "description=$(touch PWNED); 'x'\n\"", "--name", name,
                 cluster=inner.cluster_file(variables={"CALLS": str(desk.folder / "calls")}))
    inner.wait(name, all_in("FINISHED"))
    arguments, workdir = json.loads((desk.folder / "calls").read_text().splitlines()[0])
    assert arguments[4:8] == ["--name", name, "--runs-dir", str(folder / "runs")] and workdir == str(folder)
    assert "$(touch PWNED); 'x'" in Path(arguments[3]).read_text()
    assert not list(desk.folder.rglob("PWNED"))


def test_status_without_sacct_and_after_slurm_has_forgotten(desk: Desk) -> None:
    desk.submit("quickstart", "training.steps=2", "--name", "old", cluster=desk.cluster_file())
    desk.wait("old", all_in("FINISHED"))
    record = desk.folder / "runs/old/job/submission.json"
    job, = json.loads(record.read_text())["jobs"][0]["ids"]
    (desk.folder / "runs/old/DONE").unlink()
    (desk.folder / "programs").mkdir()
    # A squeue that knows nothing any more: sacct, where it answers, still does.
    squeue = desk.folder / "programs/squeue"
    squeue.write_text("#!/bin/sh\nexit 0\n")
    squeue.chmod(0o755)
    path = f"{desk.folder / 'programs'}:{desk.slurm.environment['PATH']}"
    by_sacct = json.loads(desk.upmix("status", "old", "--json", PATH=path))["rows"][0]
    assert by_sacct["state"] in ("COMPLETED", "UNKNOWN") and by_sacct["job"] == job
    sacct = desk.folder / "programs/sacct"
    sacct.write_text("#!/bin/sh\nexit 1\n")
    sacct.chmod(0o755)
    assert json.loads(desk.upmix("status", "old", "--json", PATH=path))["rows"][0]["state"] == "UNKNOWN"


def test_the_time_limit_is_no_end(long_run: Desk) -> None:
    """A real one of a minute: SLURM warns, the run saves, is requeued, and ends in its second life."""
    row, = long_run.wait("long", all_in("FINISHED"), seconds=150)
    assert row["restarts"] >= 1
    assert "asked to by USR1" in long_run.log("long")
