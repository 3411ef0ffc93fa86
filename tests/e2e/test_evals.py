"""`trimtab eval` and `trimtab gate` as a user runs them: a gateway, a server behind it, files, exit codes."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from gateway_process import TRIMTAB, Gateway, MakeGateway
from scripted import Gone, Scripted

STRATA = ("sums", "spelling")
ITEMS = 80


class Models(Scripted):
    """Three models: "good" knows all but every third item, "same" is as good, "worse" cannot spell."""

    usage: ClassVar = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.out_after = 10**9  # requests; then it is out

    def say(self, model: str, messages: list[dict[str, Any]]) -> str:
        question = messages[-1]["content"]
        self.asked[model] += 1
        if self.asked.total() > self.out_after:
            raise Gone("the engine is gone")
        if "answer_a" in question:  # it is asked to judge, and always prefers the first
            return '{"better": "a"}'
        stratum, number = question.split()
        right = int(number) % 3 != 0 and not (model == "worse" and stratum == "spelling")
        return f"answer {number}" if right else "no idea"


@pytest.fixture
def models() -> Iterator[Models]:
    with Models() as running:
        yield running


def config(port: int) -> str:
    return f"""
[engines.shop]
kind = "openai_http"
base_url = "http://127.0.0.1:{port}/v1"
accept_any_model = true
[routes.default]
retries = 0
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    text = '[suite]\nname = "shop"\ndescription = "what our shop needs"\nlicense = "own"\n'
    for name in STRATA:
        text += f'[[strata]]\nname = "{name}"\nfile = "{name}.jsonl"\nscorer = "exact"\n'
        rows = [{"id": f"{name}-{n}", "prompt": f"{name} {n}", "reference": f"answer {n}"} for n in range(ITEMS)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "suite.toml").write_text(text)
    return folder


def trimtab(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TRIMTAB), *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_gate_tells_worse_from_as_good(gateways: MakeGateway, models: Models, suite: Path, tmp_path: Path) -> None:
    gateway = gateways(config(models.port))
    url = f"{gateway.base_url}/v1"
    sides = ["--reference", f"ref={url}@good", "--candidate", f"same={url}@same", "--candidate", f"worse={url}@worse"]
    done = trimtab(tmp_path, "gate", str(suite), *sides, "--json")
    assert done.returncode == 1, done.stderr
    same, worse = json.loads(done.stdout)
    assert (same["verdict"]["ruling"], worse["verdict"]["ruling"]) == ("pass", "fail")
    assert {one["stratum"]: one["ruling"] for one in worse["verdict"]["strata"]} == {
        "sums": "pass",
        "spelling": "fail",
    }
    kept = json.loads((tmp_path / "trimtab-evals" / "shop" / "verdict-worse.json").read_text())
    assert kept["verdict"]["reason"].endswith("in spelling")
    assert kept["candidate"]["model"] == "worse"
    rows = gateway.ledger(model="worse", count=2 * ITEMS)
    assert {row["purpose"] for row in rows} == {"eval"}
    assert gateway.trimtab("ledger", "summary", "--json").stdout == ""
    runs = [str(tmp_path / "trimtab-evals" / "shop" / f"{name}.jsonl") for name in ("ref", "same", "worse")]
    assert trimtab(tmp_path, "gate", "--reference", runs[0], "--candidate", runs[1]).returncode == 0
    table = trimtab(tmp_path, "eval", "show", *runs, "--html", "report.html")
    assert "spelling" in table.stdout
    assert "<h1>Suite shop" in (tmp_path / "report.html").read_text()
    changes = trimtab(tmp_path, "eval", "diff", runs[0], runs[2])
    assert f"{ITEMS - len(range(0, ITEMS, 3))} items worse, 0 better" in changes.stdout
    assert "no idea" in changes.stdout


def test_it_stops_early_where_it_may_look_at_any_time(
    gateways: MakeGateway, models: Models, suite: Path, tmp_path: Path
) -> None:
    gateway = gateways(config(models.port))
    url = f"{gateway.base_url}/v1"
    sides = ["--reference", f"ref={url}@good", "--candidate", f"worse={url}@worse", "--strata", "spelling"]
    done = trimtab(tmp_path, "gate", str(suite), *sides, "--sequential")
    assert done.returncode == 1, done.stderr
    assert "FAIL" in done.stdout
    assert models.asked["worse"] < ITEMS


def test_an_outage_leaves_a_run_that_goes_on_and_no_verdict(
    gateways: MakeGateway, models: Models, suite: Path, tmp_path: Path
) -> None:
    gateway = gateways(config(models.port))
    url = f"{gateway.base_url}/v1"
    command = ["gate", str(suite), "--reference", f"ref={url}@good", "--candidate", f"same={url}@same"]
    models.out_after = 100
    stopped = trimtab(tmp_path, *command)
    assert stopped.returncode == 3, stopped.stderr
    assert "No verdict" in stopped.stderr
    assert "the engine is gone" in stopped.stderr
    assert "the same command goes on" in stopped.stderr
    assert not list(tmp_path.glob("trimtab-evals/shop/verdict*"))
    kept = len((tmp_path / "trimtab-evals" / "shop" / "ref.jsonl").read_text().splitlines()) - 1
    assert kept >= 90
    models.out_after = 10**9
    asked = models.asked["good"]
    assert trimtab(tmp_path, *command).returncode == 0
    assert models.asked["good"] - asked == 2 * ITEMS - kept


def test_a_setting_is_a_file_whose_gateway_comes_and_goes(models: Models, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(config(models.port))
    done = trimtab(tmp_path, "eval", str(suite), "--config", "one.toml@good", "--limit", "9", "--json")
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["strata"]["sums"]
    assert (cell["items"], cell["score"]) == (9, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "SUITE", "--config", "nowhere.toml"], "there is no file 'nowhere.toml'"),
        (["eval", "nowhere", "--config", "http://127.0.0.1:1/v1@m"], "nowhere"),
        (["eval", "SUITE", "--config", "http://127.0.0.1:1/v1@m"], "cannot be reached"),
        (["eval", "SUITE", "--config", "http://127.0.0.1:1/v1@m", "--strata", "dance"], "it has sums, spelling"),
        (["eval", "SUITE", "--config", "http://127.0.0.1:1/v1@m", "--api-key-env", "NOT_SET"], "NOT_SET is not set"),
        (["gate", "SUITE", "--reference", "a.jsonl", "--candidate", "b.jsonl"], "a.jsonl cannot be read"),
    ],
)
def test_mistakes_are_told_with_the_way_out(suite: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = trimtab(tmp_path, *[str(suite) if one == "SUITE" else one for one in arguments])
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_another_tools_file_becomes_a_suite_that_runs(models: Models, tmp_path: Path) -> None:
    test = {
        "vars": {"n": "7"},
        "assert": [{"type": "equals", "value": "answer 7"}, {"type": "javascript", "value": "1"}],
    }
    (tmp_path / "promptfoo.json").write_text(json.dumps({"prompts": ["sums {{n}}"], "tests": [test]}))
    (tmp_path / "one.toml").write_text(config(models.port))
    done = trimtab(tmp_path, "eval", "import", "promptfoo.json", "suite-of-theirs")
    assert done.returncode == 0, done.stderr
    assert "1 items in suite-of-theirs" in done.stdout
    assert "javascript" in done.stdout
    run = trimtab(tmp_path, "eval", "./suite-of-theirs", "--config", "one.toml@good", "--json")
    assert run.returncode == 0, run.stderr
    ((cell,),) = json.loads(run.stdout)["strata"].values()
    assert cell["score"] == 1.0


def test_a_judge_is_tried_before_it_decides(gateways: MakeGateway, models: Models, tmp_path: Path) -> None:
    gateway: Gateway = gateways(config(models.port))
    rows = [{"question": f"sums {n}", "a": "1", "b": "2", "better": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "judge", "--labels", "labels.jsonl", "--config", f"{gateway.base_url}/v1@good"]
    models.asked.clear()
    done = trimtab(tmp_path, *command)
    assert done.returncode == 1, done.stderr
    assert "It may not judge" in done.stdout
