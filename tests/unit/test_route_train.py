"""`trimtab route train`: what each source teaches, what is written, what is said; the router that is shipped."""

from __future__ import annotations

import hashlib
import json
import random
import re

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from test_bench_route import Letters, folder_of, write
from test_ingest import PRICES
from test_journal import row
from test_levers_watched import judged

from trimtab.cli import main
from trimtab.errors import BadRequest, StoreError
from trimtab.evals.route_labels import of_runs
from trimtab.evals.runs import Answered, Head, RunFile
from trimtab.evals.suite import load
from trimtab.measure.route_data import Job
from trimtab.measure.route_labels import of_folders
from trimtab.measure.route_ledger import Wanted, of_ledger
from trimtab.measure.route_training import train
from trimtab.protocols.conversation import last_turn
from trimtab.routing import predictor, router
from trimtab.routing.serving import Serving
from trimtab.semantic import embed as embedding
from trimtab.stores import captures, captures_db, ledger_db, ledger_reader
from trimtab.stores.ingest import Ingester
from trimtab.stores.journal import FileJournal
from trimtab.stores.sealing import Keyring, Seal
from trimtab.types import Scope

EASY, HARD = "which river garden bird?", "which integral tensor lemma?"


@pytest.fixture
def fake_embedder(monkeypatch):
    monkeypatch.setattr(embedding, "load_fast", lambda folder, progress=None: Letters())
    monkeypatch.setattr(embedding, "require_packages", lambda: None)


def invoke(*arguments):
    return CliRunner().invoke(main, ["route", "train", *map(str, arguments)], catch_exceptions=False)


def trained(folder, **options):
    return train(of_folders([folder], Job(folder, "small", "large", **options)), Letters(), floor=0.97)


def texts_folder(path, count=300):
    """The small model says that it is sorry where it fails."""
    rng = random.Random(3)
    prompts, scores = [], []
    for n in range(count):
        hard = rng.random() < 0.5
        right = int(rng.random() < (0.3 if hard else 0.95))
        said = f"The sum is {n}. The answer is {n}." if right else "I am sorry, I cannot say"
        prompts.append({"id": str(n), "prompt": f"Question {n}: {HARD if hard else EASY}", "weak_response": said})
        scores.append([right, 1])
    return write(path, prompts, {"scores": (["small", "large"], scores)})


# From folders


def test_a_folder_becomes_a_file_that_says_what_it_is(tmp_path, fake_embedder):
    out = tmp_path / "mine.router"
    prices = "0.2,0.2,10,10"
    result = invoke("--data", folder_of(tmp_path / "own"), "--weak", "small", "--strong", "large", "--out", out,
                    "--prices", prices, "--floor", "0.95", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    made, name = router.read(out)
    assert (said["file"], said["sha256"], said["prompts"]) == (str(out), name, 400)
    assert said["head"] == json.loads(msgspec.json.encode(made.head))
    head = made.head
    assert (head.weak, head.strong, head.second, head.rows, head.floor) == ("small", "large", "", 400, 0.95)
    assert (head.kind, head.pays) == ("cascade", True)
    assert head.saved > 0.1
    assert head.kept > 0.94
    assert head.skill > 5
    assert head.trained_on == "own (400 prompts)"
    for quantiles in (head.gains, head.after):
        assert len(quantiles) == router.QUANTILES
        assert list(quantiles) == sorted(quantiles)
    assert [one["name"] for one in said["rows"]] == ["length rule", "prompt-only", "cascade"]
    assert said["rows"][1]["apgr"] > 0.6
    assert "learning from 400 prompts" in result.stderr


def test_the_summary_says_where_it_does_not_pay(tmp_path, fake_embedder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = [{"id": str(n), "prompt": f"Thing {n}"} for n in range(200)]
    rng = random.Random(0)
    scores = [[int(rng.random() < 0.5), int(rng.random() < 0.9)] for _ in prompts]
    folder = write(tmp_path / "own", prompts, {"scores": (["org/small: v1", "large"], scores)})
    result = invoke("--data", folder, "--weak", "org/small: v1", "--strong", "large")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "setting: always strong. routing does not pay here" in words
    assert "does not pay by itself" in words
    assert "next to nothing of the gain" in words
    assert "no cascade" in words
    made, _ = router.read(tmp_path / "org_small_v1-large.router")
    assert (made.head.kind, made.head.pays, made.acceptance, made.head.after) == ("always strong", False, b"", ())


def test_a_strong_model_without_a_lead_leaves_the_weak_one_alone(tmp_path, fake_embedder):
    prompts = [{"id": str(n), "prompt": f"Thing {n}"} for n in range(60)]
    folder = write(tmp_path / "own", prompts, {"scores": (["a", "b"], [[n % 2, 0] for n in range(60)])})
    result = invoke("--data", folder, "--weak", "a", "--strong", "b", "--out", tmp_path / "x.router")
    assert result.exit_code == 0, result.output
    assert "b scores no more than a here" in " ".join(result.stdout.split())
    assert "nan" not in result.stdout
    assert router.read(tmp_path / "x.router")[0].head.kind == "always weak"


def test_the_same_data_and_seed_make_the_same_bytes(tmp_path):
    folder = folder_of(tmp_path / "own")
    once, again = (msgspec.msgpack.encode(trained(folder).router) for _ in range(2))
    assert once == again
    other = train(of_folders([folder], Job(folder, "small", "large")), Letters(), floor=0.97, seed=1)
    assert msgspec.msgpack.encode(other.router) != once
    assert other.router.head.data_sha256 == trained(folder).router.head.data_sha256


def test_folders_are_learned_from_together(tmp_path):
    folders = [folder_of(tmp_path / "one", count=60), folder_of(tmp_path / "two", count=50, first=100)]
    labels = of_folders(folders, Job(folders[0], "small", "large"))
    assert len(labels.examples.prompts) == 110
    assert labels.source == "one (60 prompts), two (50 prompts)"


def test_a_second_model_is_part_of_the_router(tmp_path):
    folder = folder_of(tmp_path / "own")
    made = trained(folder, second=(folder, "other"))
    assert made.router.head.second == "other"
    assert any("other, alone scores" in note for note in made.notes)
    serving = Serving(made.router)
    agreed = serving.after(EASY, "The answer is 7", 0.1, "It is 7")
    differs = serving.after(EASY, "The answer is 7", 0.1, "It is 9")
    assert differs > agreed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weak", "tiny", "--strong", "large"], "has no model 'tiny'; it has: large, other, small"),
        (["--weak", "small", "--strong", "small"], "are the same model"),
        (["--weak", "small"], "--data needs --weak and --strong"),
        (["--weak", "small", "--strong", "large", "--ledger"], "name one of --data"),
        (["--weak", "small", "--strong", "large", "--suite", "x"], "--suite goes with --runs, not with --data"),
        (["--weak", "small", "--strong", "large", "--key-env", "x"], "--key-env goes with --ledger"),
        (["--weak", "small", "--strong", "large", "--out", "nowhere/x.router"], "there is no folder"),
        (["--weak", "small", "--strong", "large", "--second", "nowhere:x"], "'nowhere' is no folder"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, fake_embedder, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = invoke("--data", folder_of(tmp_path / "own", count=30), *arguments)
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.split())
    assert not list(tmp_path.glob("*.router*"))


def test_too_few_different_prompts_are_refused(tmp_path):
    prompts = [{"id": str(n), "prompt": f"What is {n % 19}?"} for n in range(60)]
    folder = write(tmp_path / "own", prompts, {"scores": (["small", "large"], [[0, 1]] * 60)})
    with pytest.raises(BadRequest, match=f"19 different prompts to learn from; at least {predictor.FEWEST}"):
        trained(folder)


def test_an_empty_folder_and_a_full_disk_are_named(tmp_path, fake_embedder, monkeypatch):
    folder = folder_of(tmp_path / "own", count=30)
    empty = write(tmp_path / "empty", [], {"scores": (["small", "large"], [])})
    result = invoke("--data", empty, "--weak", "small", "--strong", "large", "--out", tmp_path / "x.router")
    assert result.exit_code == 1
    assert "prompts.jsonl.gz has no prompts" in result.output

    def full(path, made):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(router, "write", full)
    result = invoke("--data", folder, "--weak", "small", "--strong", "large", "--out", tmp_path / "x.router")
    assert result.exit_code == 1
    assert "x.router cannot be written: No space left on device" in result.output


# At work


def test_it_tells_hard_prompts_and_bad_answers(tmp_path):
    folder = texts_folder(tmp_path / "own")
    serving = Serving(train(of_folders([folder], Job(folder, "small", "large")), Letters(), floor=0.97).router)
    assert serving.reads_answers
    (hard, far), (easy, _) = (serving.gain(f"Question 5: {text}", Letters()) for text in (HARD, EASY))
    assert not far
    assert hard > easy + 0.3
    assert serving.gain("zzzz\n" * 500 + "```def```", Letters())[1]
    asked = f"Question 5: {EASY}"
    good = serving.after(asked, "The sum is 5. The answer is 5.", easy)
    assert serving.after(asked, "I am sorry, I cannot say", easy) > good + 0.3


def test_without_answers_to_learn_from_warnings_count(tmp_path):
    prompts = [{"id": str(n), "prompt": f"Thing {n}"} for n in range(40)]
    folder = write(tmp_path / "own", prompts, {"scores": (["small", "large"], [[n % 2, 1] for n in range(40)])})
    serving = Serving(trained(folder).router)
    assert not serving.reads_answers
    assert serving.after("x", "", 0.0) > serving.after("x", "It is 7.", 0.0) == 0.0
    assert serving.after("x", "It is 7.", 0.0, "It is 8.") > serving.after("x", "It is 7.", 0.0, "It is 7.")


def test_damaged_models_are_refused(tmp_path):
    made = trained(folder_of(tmp_path / "own", count=60)).router
    for name in ("predictor", "acceptance"):
        with pytest.raises(StoreError):
            Serving(msgspec.structs.replace(made, **{name: getattr(made, name)[:-9]}))
    with pytest.raises(StoreError):
        Serving(msgspec.structs.replace(made, predictor=made.acceptance))


# From eval runs


@pytest.fixture
def suite(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "suite.toml").write_text(
        '[suite]\nname = "shop"\ndescription = "Ours."\nlicense = "MIT"\n\n[defaults]\nsystem = "Be brief."\n\n'
        '[[strata]]\nname = "all"\nfile = "all.jsonl"\nscorer = "normalised"\n'
    )
    items = [
        {"id": f"i{n}", "prompt": f"Question {n}: {HARD if n % 2 else EASY}", "reference": "yes"} for n in range(60)
    ]
    items.append({"id": "tool", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                  "reference": "yes"})  # fmt: skip
    (folder / "all.jsonl").write_text("".join(json.dumps(one) + "\n" for one in items))
    return folder


def run(suite, path, model, right, *, repeats=1, leave=(), cost=None, **changes):
    """`right` says of an item and a repeat whether the answer is."""
    loaded = load(suite)
    head = Head("shop", loaded.sha256, path.stem, "", "http://127.0.0.1:1/v1", model, 0, "0.1.0", "Linux", 1e9)
    with RunFile(path, msgspec.structs.replace(head, **changes), fresh=True) as file:
        for n, item in enumerate(loaded.items):
            for repeat in range(repeats):
                ok = right(n, repeat)
                if item.id not in leave:
                    said = "yes" if ok else "I cannot say"
                    file.add(Answered(item.id, item.stratum, float(ok), "", said, repeat, input_tokens=100,
                                      output_tokens=10, cost_usd=cost, cache="hit" if n == 0 else "miss"))  # fmt: skip
    return path


def test_two_runs_become_a_router(tmp_path, suite, fake_embedder):
    weak = run(suite, tmp_path / "a.jsonl", "small", lambda n, _: n % 2 == 0, cost=0.001)
    strong = run(suite, tmp_path / "b.jsonl", "large", lambda n, _: True, cost=0.01)
    out = tmp_path / "x.router"
    result = invoke("--runs", weak, strong, "--suite", suite, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    head = router.read(out)[0].head
    assert (head.weak, head.strong, head.rows, head.trained_on) == (
        "small",
        "large",
        60,
        "runs of the suite shop (61 items)",
    )
    assert (head.pays, said["weak_score"], said["strong_score"]) == (True, 0.5, 1.0)
    assert 0.3 < head.saved < 0.6
    assert said["costs"].startswith("what the runs' calls cost")
    assert any(note.startswith("1 answers left out") for note in said["notes"])


def test_repeats_are_examples_of_their_own_and_share_the_strong_mean(tmp_path, suite):
    weak = run(suite, tmp_path / "a.jsonl", "small", lambda n, repeat: repeat == 0, repeats=2)
    strong = run(suite, tmp_path / "b.jsonl", "large", lambda n, repeat: repeat < 2, repeats=4)
    other = run(suite, tmp_path / "c.jsonl", "third", lambda n, repeat: False)
    labels = of_runs([weak, strong, other], suite=str(suite), prices=(1.0, 2.0, 10.0, 20.0, 3.0, 3.0))
    found = labels.examples
    assert len(found.prompts) == 120
    assert found.weak.tolist()[:2] == [1.0, 0.0]
    assert set(found.strong.tolist()) == {0.5}
    assert [one.text for one in found.answers[:2]] == ["yes", "I cannot say"]
    assert {one.text for one in found.second} == {"I cannot say"}
    assert {name: values[0] for name, values in found.costs.items()} == pytest.approx(
        {"weak": 120e-6, "strong": 1200e-6, "check": 330e-6}
    )


def test_what_an_answer_from_a_cache_cost_is_no_call(tmp_path, suite):
    weak = run(suite, tmp_path / "a.jsonl", "small", lambda n, _: True, cost=0.25)
    lines = weak.read_text().replace('"cost_usd":0.25', '"cost_usd":0.0', 1)
    weak.write_text(lines)
    strong = run(suite, tmp_path / "b.jsonl", "large", lambda n, _: True, cost=0.5)
    costs = of_runs([weak, strong], suite=str(suite)).examples.costs
    assert costs["weak"].tolist() == [0.25] * 60
    free = run(suite, tmp_path / "c.jsonl", "free", lambda n, _: True)
    labels = of_runs([free, strong], suite=str(suite))
    assert "weak model counts as free" in labels.costs
    assert labels.examples.costs["strong"].tolist() == [1.0] * 60


def test_runs_that_do_not_fit_are_refused(tmp_path, suite):
    weak = run(suite, tmp_path / "a.jsonl", "small", lambda n, _: True)
    strong = run(suite, tmp_path / "b.jsonl", "large", lambda n, _: True)
    other = run(suite, tmp_path / "c.jsonl", "large", lambda n, _: True, suite_sha256="1" * 64)
    part = run(suite, tmp_path / "d.jsonl", "large", lambda n, _: True, leave=("i7",))
    for pair, words in (((weak, other), "different suites"), ((weak, part), "did not answer the same items")):
        with pytest.raises(BadRequest, match=words):
            of_runs(pair, suite=str(suite))
    with pytest.raises(BadRequest, match=r"hold no questions; name the folder of their suite, 'shop', with --suite"):
        of_runs([weak, strong])
    with pytest.raises(BadRequest, match="basics is not the suite of the runs"):
        of_runs([weak, strong], suite="basics")
    with pytest.raises(BadRequest, match="two models are needed"):
        of_runs([weak, weak], suite=str(suite))


def test_two_settings_of_one_model_go_by_their_names(tmp_path, suite):
    weak = run(suite, tmp_path / "q4.jsonl", "small", lambda n, _: True)
    strong = run(suite, tmp_path / "f16.jsonl", "small", lambda n, _: True)
    labels = of_runs([weak, strong], suite=str(suite))
    assert (labels.weak, labels.strong) == ("q4", "f16")


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": " hi "}], "hi"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "input_text", "text": "b"}],
                }
            ],
            "a\nb",
        ),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], ""),
        ([{"role": "user", "content": [{"type": "tool_result"}, {"type": "text", "text": "a"}]}], ""),
        ([{"role": "user", "content": None}], ""),
        ([7], ""),
        ([], ""),
    ],
)
def test_the_last_turn_is_a_users_text(messages, text):
    assert last_turn(json.dumps(messages).encode()) == text


# From the ledger


class Gateway:
    """A data folder with verdicts and captured requests."""

    def __init__(self, folder):
        self.folder = folder
        self.journal = FileJournal(folder / "journal", "w0")
        self.captured = []

    def served(self, number, loss, *, tenant="acme", asked="large", model="small", captured=True, text=""):
        word = msgspec.structs.replace(judged(number, loss, model=model), tenant=tenant)
        self.journal.row(row(word.id, scope=Scope(tenant, "chat"), model=asked))
        self.journal.note(word)
        if captured:
            content = text or f"Question {number}: {HARD if number % 2 else EASY}"
            body = json.dumps({"model": asked, "messages": [{"role": "user", "content": content}]}).encode()
            self.captured.append(captures_db.Captured(
                word.id, float(number), 2e9, tenant, "u", "chat", "", "openai", "/v1/chat/completions", asked, False,
                1000, 100, "plain", "", len(body), Seal().close(body, word.id),
            ))  # fmt: skip

    def labels(self, prices=None, **wanted):
        ingester = Ingester(self.folder, PRICES)
        ingester.run_once()
        ingester.close()
        path = self.folder / captures.FILE_NAME
        writer = captures_db.Writer(path)
        writer.add(self.captured)
        writer.close()
        with ledger_reader.Reader(self.folder / ledger_db.FILE_NAME) as reader:
            return of_ledger(reader, path, Keyring((), {}), Wanted(**wanted), prices)


@pytest.fixture
def gateway(tmp_path):
    made = Gateway(tmp_path / "data")
    yield made
    made.journal.close()


def test_verdicts_become_labels(gateway):
    for number in range(40):
        gateway.served(number, float(number % 2))
    gateway.served(50, 1.0, captured=False)
    gateway.served(51, None)
    labels = gateway.labels(prices=(1.0, 1.0, 10.0, 10.0))
    found = labels.examples
    assert (labels.weak, labels.strong, len(found.prompts)) == ("small", "large", 40)
    assert found.prompts[1] == f"Question 1: {HARD}"
    assert (found.strong - found.weak).tolist() == [float(n % 2) for n in range(40)]
    assert (found.costs["weak"][0], found.costs["strong"][0]) == pytest.approx((1100e-6, 11000e-6))
    assert any(note.startswith("1 verdicts left out") for note in labels.notes)
    made = train(labels, Letters(), floor=0.97)
    assert (made.router.head.kind, made.router.head.pays) == ("prompt", True)
    assert Serving(made.router).gain(HARD, Letters())[0] > Serving(made.router).gain(EASY, Letters())[0]


def test_tenants_and_pairs_are_never_mixed(gateway):
    for number in range(30):
        gateway.served(number, 0.0, tenant="acme" if number % 2 else "other", model="small" if number < 20 else "tiny")
    with pytest.raises(BadRequest, match="several: acme, other; choose with --tenant"):
        gateway.labels()
    gateway.captured = []
    with pytest.raises(BadRequest, match="small before large, tiny before large; choose with --weak and --strong"):
        gateway.labels(tenant="acme")
    labels = gateway.labels(tenant="acme", weak="small")
    assert len(labels.examples.prompts) == 10


def test_a_ledger_without_labels_says_how_to_get_some(gateway, tmp_path):
    with pytest.raises(BadRequest, match=re.escape("[routes.NAME.shadow] has its answers judged")):
        gateway.labels()
    gateway.served(1, 0.0, captured=False)
    with pytest.raises(BadRequest, match=re.escape("none of the 1 requests with a verdict was captured")):
        gateway.labels()
    result = invoke("--ledger", "--data-dir", tmp_path / "nothing", "--out", tmp_path / "x.router")
    assert result.exit_code == 1
    assert "the ledger has no verdict" in result.output


# The one that is shipped


class Wide:
    """An embedder of the fast one's dimensions without its files."""

    def embed(self, texts):
        seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) for text in texts]
        rows = np.stack([np.random.default_rng(seed).normal(size=256) for seed in seeds]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_default_router_loads_promises_nothing_and_is_small():
    made, _ = router.read(router.DEFAULT)
    head = made.head
    assert router.DEFAULT.stat().st_size < 700_000
    assert (head.weak, head.strong, head.kind, head.pays, head.saved) == ("", "", "always strong", False, 0.0)
    assert "no label of this traffic is known" in head.reason
    assert "MIT" in head.trained_on
    assert "Apache-2.0" in head.trained_on
    assert "little better than chance" in head.trained_on
    assert list(head.gains) == sorted(head.gains)
    assert len(head.gains) == router.QUANTILES
    assert router.DEFAULT.with_name("default.router.md").is_file()


def test_the_default_routers_scores_are_gains_that_differ():
    serving = Serving(router.read(router.DEFAULT)[0])
    assert not serving.reads_answers
    texts = ["Hi", "Who wrote Faust?", "If 3 pens cost $4.50, how many can I buy for $90?",
             r"Let $f(x) = \sqrt{x^2+1}$. Find all $x$ such that $f(f(x)) = 3$.", "Paris or Rome?"]  # fmt: skip
    gains = [serving.gain(text, Wide())[0] for text in texts]
    assert all(-1 <= gain <= 1 for gain in gains)
    assert len({round(gain, 4) for gain in gains}) == len(texts)
    with pytest.raises(BadRequest, match="another embedder"):
        serving.gain("Hi", Letters())
