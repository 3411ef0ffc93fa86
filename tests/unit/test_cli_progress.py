"""How far a command has come: a bar on a terminal, a line for each tenth of the way elsewhere."""

import pytest

from trimtab.cli.progress import progress


@pytest.fixture(params=[False, True], ids=["pipe", "terminal"])
def terminal(request, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", request.param)
    return request.param


def test_a_line_for_each_tenth_where_there_is_no_terminal(terminal, capsys):
    with progress("asking", 25, "{done} of {total} answers ({what})") as tick:
        for n in range(20):
            tick(what=f"way {n}")
        tick(5)
    said = capsys.readouterr()
    assert said.out == ""
    if terminal:
        assert "25/25" in said.err
        assert "answers" not in said.err
    else:
        done = [int(line.split()[0]) for line in said.err.splitlines()]
        assert done == [3, 5, 8, 10, 13, 15, 18, 20, 25]
        assert said.err.startswith("3 of 25 answers (way 2)\n")


def test_the_last_line_comes_whatever_the_steps_are(capsys):
    for total in (1, 3, 10, 11):
        with progress("x", total, "{done} of {total}") as tick:
            for _ in range(total):
                tick()
        assert capsys.readouterr().err.splitlines()[-1] == f"{total} of {total}"


def test_a_command_may_say_nothing(capsys):
    with progress("x", 2) as tick:
        tick(2)
    assert capsys.readouterr().err == ""
