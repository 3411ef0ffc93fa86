"""`trimtab route explain`: the gateway's own decision about a prompt, in words."""

import json

import pytest
from click.testing import CliRunner
from test_config import OPENAI

from trimtab.cli import main

CONFIG = f"""{OPENAI}
api_key_env = ""
[models.cheap]
engine = "openai"
name = "gpt-4o-mini"
[models.dear]
engine = "openai"
name = "gpt-4o"
[levers.policy.rules.legal]
words = ["lawsuit"]
refuse = "no legal advice"
[levers.policy.rules.long]
words = ["thesis"]
keep = true
[levers.route]
mode = "on"
gate = "advisory"
weak = "cheap"
strong = "dear"
strong_share = SHARE
"""


@pytest.fixture
def explain(tmp_path):
    def explain(prompt, *options, share="0.5", **how):
        path = tmp_path / "trimtab.toml"
        path.write_text(CONFIG.replace("SHARE", share))
        return CliRunner().invoke(main, ["route", "explain", prompt, "--config", str(path), *options], **how)

    return explain


@pytest.mark.parametrize(("share", "served"), [("0.0", "cheap"), ("1.0", "dear")])
def test_the_model_and_why(explain, share, served):
    found = json.loads(explain("What is the capital of France?", "--json", share=share).stdout)
    assert (found["asked"], found["served"]) == ("dear", served)
    assert -1 <= found["gain"] <= 1
    assert (found["saving_usd"] > 0) if served == "cheap" else (found["saving_usd"] is None)
    assert "other models than yours" in found["router"]


def test_rules_come_first(explain):
    refused = json.loads(explain("May I file a lawsuit?", "--json").stdout)
    assert (refused["served"], refused["decisions"][0]["reason"]) == ("", "rule legal refuses")
    kept = explain("Read my thesis, please", share="0.0")
    assert "rule long keeps the model" in kept.stdout
    assert kept.stdout.splitlines()[-2].split() == ["served", "by", "dear"]


def test_what_cannot_be_explained(explain):
    assert "there is no prompt" in explain(" ").output
    assert "no engine serves the model 'nobody'" in explain("hi", "--model", "nobody").output
