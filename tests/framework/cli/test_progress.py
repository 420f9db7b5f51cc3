"""What long work says of itself where no terminal shows a bar."""

from itertools import count

from framework.cli import progress


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    seconds = count(step=12)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 30)
    with progress.bar("runs", 6) as advance:
        for _ in range(6):
            advance()
    said = capsys.readouterr()
    assert said.out == "" and said.err == "runs: 2 of 6\nruns: 5 of 6\n"


def test_short_work_says_nothing(capsys):
    with progress.growing_bar("layouts") as advance:
        advance(0, 2)
        advance(2, 0)
    assert capsys.readouterr() == ("", "")
