import io

import pytest

from cryoforum_core.progress import Progress, format_duration


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (75, "1:15"), (59.6, "1:00"), (4000, "1:06:40")])
def test_duration(seconds, text):
    assert format_duration(seconds) == text


def test_log_gets_few_lines_and_a_last_one(capsys):
    with Progress(100, "train", "steps") as progress:
        for _ in range(100):
            progress.update(1, loss=1.25)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1  # within five seconds there is nothing to say but the end
    assert lines[0].startswith("train  100%  100/100 steps  loss=1.25  took 0:0")


def test_log_tells_the_time_left(capsys):
    with Progress(4, "predict", log_interval_seconds=0.0) as progress:
        for _ in range(4):
            progress.update()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "time left" in lines[0] and lines[0].startswith("predict   25%  1/4 images")
    assert "took" in lines[-1] and "time left" not in lines[-1]


def test_resumed_work_counts_what_was_done_before(capsys):
    with Progress(10, "predict", initial=6, log_interval_seconds=0.0) as progress:
        progress.update(4)
    assert "10/10" in capsys.readouterr().out


def test_terminal_gets_a_bar(monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(3, "simulate") as progress:
        progress.update(3, snr=0.1)
    assert "simulate: 100%" in terminal.getvalue() and "snr=0.1" in terminal.getvalue()
    assert not capsys.readouterr().out


def test_error_leaves_no_line_of_success(capsys):
    with pytest.raises(RuntimeError), Progress(3, "simulate") as progress:
        progress.update(1)
        raise RuntimeError("stopped")
    assert "took" not in capsys.readouterr().out
