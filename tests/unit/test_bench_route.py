"""`trimtab bench route`: folders of recorded outcomes, what may be learned from them, and what is printed."""

import csv
import gzip
import io
import json
import random

import numpy as np
import pytest
from click.testing import CliRunner

from trimtab.cli.bench import bench
from trimtab.errors import BadRequest
from trimtab.measure import routes
from trimtab.measure.route_data import Job, borrowed, examples, splits
from trimtab.routing import data, questions
from trimtab.semantic import embed as embedding

KEYS = {"name", "apgr", "cpt50", "cpt80", "saved_at_95", "saved_at_99", "apgr_low", "apgr_high"}


class Letters:
    """An embedder without files: how often each word of a small vocabulary comes."""

    dim = 32

    def embed(self, texts):
        out = np.zeros((len(texts), 32), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().split():
                row[sum(word.encode()) % 32] += 1
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def write(folder, prompts, tables):
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / "prompts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in prompts)
    for name, (models, rows) in tables.items():
        text = io.StringIO()
        csv.writer(text).writerows(
            [["", *models], *([one["id"], *row] for one, row in zip(prompts, rows, strict=True))]
        )
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
    return folder


def folder_of(path, count=400, seed=0, first=0):
    """Hard words make the small model fail and answer briefly; the other small model agrees when both are right."""
    rng = random.Random(seed)
    prompts, scores, preds, chars = [], [], [], []
    for n in range(first, first + count):
        hard = random.Random(n).random() < 0.5
        small = int(rng.random() < (0.4 if hard else 0.95))
        other = int(rng.random() < (0.5 if hard else 0.9))
        large = int(rng.random() < 0.97)
        topic = "integral tensor lemma" if hard else "river garden bird"
        prompts.append(
            {"id": f"p{n}", "prompt": f"Question {n}: which {topic}?", "category": "hard" if hard else "easy"}
        )
        scores.append([small, large, other])
        preds.append([n if small else n + 1 + rng.randrange(9), n, n if other else n + 20 + rng.randrange(9)])
        chars.append([100 if small else 30, 300, 100])
    models = ["small", "large", "other"]
    return write(path, prompts, {"scores": (models, scores), "preds": (models, preds), "outchars": (models, chars)})


@pytest.fixture
def fake_embedder(monkeypatch):
    monkeypatch.setattr(embedding, "load_fast", lambda folder, progress=None: Letters())
    monkeypatch.setattr(embedding, "require_packages", lambda: None)


def invoke(*arguments):
    return CliRunner().invoke(bench, ["route", *map(str, arguments)], catch_exceptions=True)


def test_the_rows_in_json(tmp_path, fake_embedder):
    folder = folder_of(tmp_path / "own")
    result = invoke("--data", folder, "--weak", "small", "--strong", "large", "--prices", "0.2,0.2,5,15", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    rows = {one["name"]: one for one in report["rows"]}
    assert all(set(one) >= KEYS for one in report["rows"])
    for part in ("random", "length", "best single", "task", "prompt", "cascade", "oracle"):
        assert any(part in name for name in rows), part
    assert rows["ours prompt-only"]["apgr"] > 0.6
    assert rows["ours cascade"]["apgr"] > rows["ours prompt-only"]["apgr"]
    assert rows["ours cascade"]["apgr_low"] < rows["ours cascade"]["apgr"] < rows["ours cascade"]["apgr_high"]
    assert report["setting"]["pays"]
    assert report["setting"]["kept"] > 0.95
    assert report["stream"][0]["worst_after_300"] < 0.05
    assert set(report["latency_ms"]) == {"p50", "p99"}


def test_the_table_names_rows_setting_and_stream(tmp_path, fake_embedder):
    folder = folder_of(tmp_path / "own")
    result = invoke(
        "--data", folder, "--weak", "small", "--strong", "large", "--second", f"{folder}:other", "--labels", "200",
        "--budget", "0.3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in (
        "ours cascade, weak answers only",
        "setting: ",
        "30% strong asked",
        "p99",
        "200 labels",
        "alone scores",
    ):
        assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weak", "tiny", "--strong", "large"], "no model 'tiny'; it has: large, other, small"),
        (["--weak", "small", "--strong", "small"], "the same model"),
        (["--weak", "small", "--strong", "large", "--labels", "20", "--folds", "3"], "one of --labels and --folds"),
        (["--weak", "small", "--strong", "large", "--labels", "400"], "none would be left"),
        (["--weak", "small", "--strong", "large", "--prices", "1,2"], "four or six numbers"),
        (["--weak", "small", "--strong", "large", "--second", "nowhere"], "a folder, a colon"),
    ],
)
def test_mistakes_are_named(tmp_path, fake_embedder, arguments, words):
    folder = folder_of(tmp_path / "own")
    result = invoke("--data", folder, *arguments)
    assert result.exit_code != 0
    assert words in result.output + str(result.exception)


def test_only_questions_of_other_folders_are_learned_from(tmp_path):
    own = folder_of(tmp_path / "own", count=60)
    other = folder_of(tmp_path / "other", count=60, first=40, seed=1)
    job = Job(own, "small", "large", train=(other,))
    whole, _ = examples(data.read(own), job)
    notes = []
    lesson = borrowed(other, job, set(whole.keys), notes)
    assert len(lesson.keys) == 40
    assert not set(lesson.keys) & set(whole.keys)
    assert notes == ["other: 20 prompts left out, they ask what own asks"]


@pytest.mark.parametrize("options", [{"folds": 3}, {"labels": 30}, {}])
def test_no_question_is_learned_from_and_routed(tmp_path, options):
    rng = random.Random(0)
    texts = [f"What is {n % 25}?{rng.choice(['', ' Answer:', '  '])}" for n in range(100)]
    prompts = [{"id": str(n), "prompt": text} for n, text in enumerate(texts)]
    folder = write(tmp_path / "own", prompts, {"scores": (["a", "b"], [[0, 1]] * 100)})
    job = Job(folder, "a", "b", **options)
    whole, _ = examples(data.read(folder), job)
    routed = []
    for learn, test in splits(whole, job, foreign=False):
        assert not {whole.keys[n] for n in learn} & {whole.keys[n] for n in test}
        routed.extend(test)
    assert len(routed) == len(set(routed))
    assert len(routed) == 100 or "labels" in options


def test_without_labels_of_the_traffic_the_strong_model_answers_alone(tmp_path):
    own = folder_of(tmp_path / "own", count=120)
    other = folder_of(tmp_path / "other", count=120, first=500, seed=1)
    report = routes.run(Job(own, "small", "large", train=(other,)), Letters())
    assert (report.setting.setting, report.setting.kept) == ("always strong", 1.0)
    assert "no label of this traffic" in report.setting.reason


def test_models_that_a_training_folder_lacks_have_stand_ins(tmp_path):
    own = folder_of(tmp_path / "own", count=60)
    prompts = [{"id": str(n), "prompt": f"Another thing {n}"} for n in range(50)]
    other = write(tmp_path / "other", prompts, {"scores": (["x", "y"], [[n % 2, 1] for n in range(50)])})
    report = routes.run(Job(own, "small", "large", train=(other,)), Letters())
    assert any("weakest and strongest stand in: x, y" in note for note in report.notes)


def test_prompts_without_a_score_are_left_out_and_counted(tmp_path):
    prompts = [{"id": str(n), "prompt": f"Thing {n}"} for n in range(60)]
    rows = [["" if n < 7 else n % 2, 1] for n in range(60)]
    folder = write(tmp_path / "own", prompts, {"scores": (["a", "b"], rows)})
    report = routes.run(Job(folder, "a", "b"), Letters())
    assert (report.prompts, report.skipped) == (53, 7)
    assert any("no answers" in note for note in report.notes)


def test_a_second_folder_is_joined_by_the_question(tmp_path):
    own = [{"id": "1", "prompt": "What is two?\nA. 2\nB. 3\nAnswer:"}, {"id": "2", "prompt": "Which one?\nA. x\nB. y"}]
    other = [
        {"id": "a", "prompt": "Which one?\nA. p\nB. q"},
        {"id": "b", "prompt": "which  ONE?\nA. x\nB. y"},
        {"id": "c", "prompt": "What is two?\nA. 1\nB. 2\nC. 3"},
    ]
    folders = [
        write(tmp_path / name, prompts, {"scores": (["m"], [[1]] * len(prompts))})
        for name, prompts in (("own", own), ("other", other))
    ]
    assert data.join(data.read(folders[0]), data.read(folders[1])) == [2, 1]
    assert questions.key(own[0]["prompt"]) == questions.key(other[2]["prompt"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("prompts.jsonl", '{"id": "1", "prompt": "x"}\n{"id": 2}\n', r"prompts.jsonl.gz, line 2: .*should be"),
        (
            "prompts.jsonl",
            '{"id": "1", "prompt": "x"}\n{"id": "1", "prompt": "y"}\n',
            r"line 2: id '1' is also in line 1",
        ),
        ("prompts.jsonl", "", r"prompts.jsonl.gz has no prompts"),
        ("scores.csv", ",a,b\n1,0\n", r"scores.csv.gz, line 2: 2 cells, the header has 3"),
        ("scores.csv", ",a,b\n1,0,2\n", r"scores.csv.gz, line 2: '2' is no score from 0 to 1"),
        ("scores.csv", ",a,b\n7,0,1\n", r"scores.csv.gz has no row for '1'"),
        ("scores.csv", ",a,a\n1,0,1\n", r"line 1: a model comes twice"),
        ("outchars.csv", ",a,b\n1,many,1\n", r"outchars.csv.gz, line 2: 'many' is no number of characters"),
    ],
)
def test_a_bad_folder_is_refused_with_file_and_line(tmp_path, name, content, words):
    folder = write(tmp_path / "own", [{"id": "1", "prompt": "x"}], {"scores": (["a", "b"], [[0, 1]])})
    (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    with pytest.raises(BadRequest, match=words):
        data.read(folder)


def test_a_file_that_is_cut_is_refused(tmp_path):
    folder = folder_of(tmp_path / "own", count=30)
    whole = (folder / "scores.csv.gz").read_bytes()
    (folder / "scores.csv.gz").write_bytes(whole[:-20])
    with pytest.raises(BadRequest, match=r"scores.csv.gz cannot be read"):
        data.read(folder)
    with pytest.raises(BadRequest, match=r"is no folder"):
        data.read(tmp_path / "nowhere")
