"""Routing: the protocol's figures, what is learned, what is held apart, and what the dial keeps."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import BadRequest, StoreError
from trimtab.routing import acceptance, answers, arithmetic, evaluate, predictor, questions, setting, stored
from trimtab.routing.acceptance import Acceptance
from trimtab.routing.data import Answer
from trimtab.routing.dial import Dial, State, mean_cost, mean_loss, strong_share
from trimtab.routing.predictor import Predictor

EASY = ["capital", "city", "country", "river", "name", "spring", "tree", "bird", "house", "garden"]
HARD = ["integral", "tensor", "manifold", "lemma", "torus", "spectrum", "operator", "measure", "sheaf", "functor"]


class Letters:
    """An embedder without files: how often each word of a small vocabulary comes, by a hash that is always the same."""

    def embed(self, texts):
        out = np.zeros((len(texts), 32), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().split():
                row[sum(word.encode()) % 32] += 1
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def prompts_with_gain(count, seed=0):
    """Prompts of easy and of hard words; the weak model fails the hard ones, the strong one nearly none."""
    rng = random.Random(seed)
    prompts, weak, strong = [], [], []
    for n in range(count):
        hard = rng.random() < 0.5
        words = rng.sample(HARD if hard else EASY, 4)
        prompts.append(f"{n} what is the {' '.join(words)}?")
        weak.append(float(rng.random() > (0.8 if hard else 0.1)))
        strong.append(float(rng.random() > 0.05))
    return prompts, np.array(weak), np.array(strong)


def truth(weak, strong, price=0.1):
    ones = np.ones(len(weak))
    return evaluate.Truth(weak, strong, weak, ones * price, ones, ones)


def outcome(gains, weak, strong, after=None):
    ones = np.ones(len(weak))
    far = np.zeros(len(weak), dtype=bool)
    return setting.Outcome(gains, far, after, weak, strong, weak, ones * 0.1, ones, ones * 0)


# The protocol


def test_a_coin_recovers_half_and_an_oracle_nearly_all():
    rng = np.random.default_rng(0)
    weak = (rng.random(400) < 0.6).astype(float)
    strong = np.maximum(weak, (rng.random(400) < 0.7).astype(float))
    coin = evaluate.random_figures(truth(weak, strong), draws=50)
    assert (coin.apgr, coin.cpt50, coin.cpt80) == (0.5, 50.0, 80.0)
    assert coin.apgr_low < 0.5 < coin.apgr_high
    oracle = evaluate.figures("oracle", strong - weak, truth(weak, strong), draws=50)
    share = float((strong - weak).mean())
    assert oracle.apgr == pytest.approx(1 - share / 2, abs=0.01)
    assert oracle.cpt50 == pytest.approx(50 * share, abs=0.5)


def test_figures_of_four_prompts_by_hand():
    weak, strong = np.array([0.0, 1, 0, 1]), np.array([1.0, 1, 1, 1])
    found = evaluate.figures("x", np.array([4.0, 3, 2, 1]), truth(weak, strong, price=0.0), draws=10)
    # PGR 0, .5, .5, 1, 1 at shares 0, .25, .5, .75, 1
    assert found.apgr == pytest.approx(0.25 * (0.25 + 0.5 + 0.75 + 1), abs=1e-4)
    assert found.cpt50 == 25.0
    assert found.saved_at_99 == pytest.approx(0.25 + 0.25 * (0.01 / 0.25), abs=0.02)


def test_equal_scores_are_a_straight_line_whatever_their_order():
    weak, strong = np.array([0.0, 0, 1, 1]), np.array([1.0, 1, 1, 1])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        found = evaluate.figures("x", np.zeros(4), truth(weak[order], strong[order]), draws=5)
        assert found.apgr == 0.5


def test_without_a_lead_there_is_no_apgr():
    same = np.array([1.0, 0, 1])
    found = evaluate.figures("x", np.arange(3.0), truth(same, same), draws=5)
    assert found.apgr is None
    assert found.saved_at_99 == pytest.approx(0.9)


def test_the_weak_call_of_a_cascade_is_paid_where_it_escalates():
    weak, strong = np.zeros(10), np.ones(10)
    ones = np.ones(10)
    cascade = evaluate.Truth(weak, strong, weak, ones * 0.2, ones * 1.2, ones)
    assert evaluate.figures("x", np.arange(10.0), cascade, draws=5).saved_at_99 == pytest.approx(-0.19, abs=0.02)


def test_a_paired_gain_has_an_interval_around_it():
    _, weak, strong = prompts_with_gain(300)
    good = strong - weak + np.random.default_rng(0).normal(0, 0.3, 300)
    gap, low, high = evaluate.paired(good, np.zeros(300), truth(weak, strong), draws=100)
    assert 0 < low < gap < high
    assert evaluate.paired(good, good, truth(weak, strong), draws=20) == (0.0, 0.0, 0.0)


# Questions


def test_the_same_question_is_known_whatever_is_wrapped_around_it():
    four = "What is  2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"
    ten = " what is 2+2?\nA. 1\nB. 2\nC. 3\nD. 4"
    boxed = "Q: What is 2 + 2?\nPut your final answer in \\boxed{...}."
    assert questions.key(four) == questions.key(ten) == questions.key(boxed)
    assert questions.key("What is 2 + 3?") != questions.key(four)
    assert questions.parse(four).options == ("3", "4", "5", "6")
    assert questions.parse("A. is a letter").options == ()


@given(st.text(max_size=200))
def test_any_text_has_a_question_and_features(text):
    assert isinstance(questions.key(text), str)
    row = predictor.features.matrix([text])
    assert np.isfinite(row).all()
    assert np.isfinite(answers.matrix([text], [Answer(text=text)])).all()


@given(st.lists(st.sampled_from("abcdef"), min_size=6, max_size=60), st.integers(2, 6))
def test_equal_questions_never_are_on_two_sides(keys, count):
    folds = predictor.folds_of(keys, count, seed=1)
    assert all(
        len({int(fold) for fold, key in zip(folds, keys, strict=True) if key == name}) == 1 for name in set(keys)
    )


# The predictor


def test_a_gain_that_can_be_learned_is_learned():
    prompts, weak, strong = prompts_with_gain(400)
    fitted = predictor.fit(prompts[:300], weak[:300], strong[:300], Letters())
    scores = fitted.predictor.estimates(prompts[300:], Letters()).gain
    assert evaluate.figures("x", scores, truth(weak[300:], strong[300:]), draws=5).apgr > 0.65
    assert fitted.predictor.skill > 5


def test_nothing_to_learn_is_no_skill():
    prompts, weak, strong = prompts_with_gain(200)
    shuffled = np.random.default_rng(1).permutation(200)
    assert abs(predictor.fit(prompts, weak[shuffled], strong[shuffled], Letters()).predictor.skill) < 3.5


def test_held_out_gains_are_blind_to_their_own_labels():
    """A question that stands twice with noise for labels must not be known by its twin."""
    rng = np.random.default_rng(3)
    prompts = [f"question {' '.join(rng.choice(EASY + HARD, 5))} {n // 2}?" for n in range(200)]
    noise = np.repeat(rng.integers(0, 2, 100), 2).astype(float)
    fitted = predictor.fit(prompts, noise, np.ones(200), Letters())
    assert np.corrcoef(fitted.held_out, 1 - noise)[0, 1] < 0.3


def test_it_abstains_far_from_its_data():
    prompts, weak, strong = prompts_with_gain(300)
    learned = predictor.fit(prompts, weak, strong, Letters()).predictor
    strange = "\\[ \\int_0^1 x^2 \\] " * 40 + "DEF f(x): return {x}; " * 20
    assert learned.score(strange, Letters()).far
    assert not learned.score(prompts[7], Letters()).far
    away = learned.estimates([f"{strange} {n}" for n in range(20)], Letters())
    assert not learned.believed_on(away)
    assert learned.believed_on(learned.estimates(prompts_with_gain(100, seed=9)[0], Letters()))


def test_a_stored_model_says_the_same():
    prompts, weak, strong = prompts_with_gain(120)
    learned = predictor.fit(prompts, weak, strong, Letters())
    again = stored.loads(stored.dumps(learned.predictor), Predictor)
    assert (again.estimates(prompts, Letters()).gain == learned.predictor.estimates(prompts, Letters()).gain).all()
    given_answers = [Answer(text=f"It is {n}.") for n in range(120)]
    checked = acceptance.fit(acceptance.Examples(prompts, given_answers, weak, strong, learned.held_out, given_answers))
    back = stored.loads(stored.dumps(checked.acceptance), Acceptance)
    arguments = (prompts, given_answers, learned.held_out, given_answers)
    assert (back.estimates(*arguments) == checked.acceptance.estimates(*arguments)).all()


def test_bytes_that_are_no_model_are_refused():
    prompts, weak, strong = prompts_with_gain(60)
    data = stored.dumps(predictor.fit(prompts, weak, strong, Letters()).predictor)
    for bad in (b"", b"\x80", data[:-40], data.replace(b"predictor", b"elsething")):
        with pytest.raises(StoreError, match="no routing model"):
            stored.loads(bad, Predictor)
    with pytest.raises(StoreError, match="kind 'predictor'"):
        stored.loads(data, Acceptance)


def test_too_little_to_learn_from_is_said():
    with pytest.raises(BadRequest, match="0 prompts to learn from; at least 20"):
        predictor.fit([], np.array([]), np.array([]), Letters())
    prompts, weak, strong = prompts_with_gain(30)
    weak[3] = math.nan
    with pytest.raises(BadRequest, match="needs a score"):
        predictor.fit(prompts, weak, strong, Letters())


# Answers


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        (Answer(text="So 3 + 4 = 7.\n#### 7"), "7"),
        (Answer(text="Thus \\boxed{\\frac{1}{2}} it is"), "\\frac{1}{2}"),
        (Answer(text="First 12, then the answer is 1,200 dollars."), "1,200 dollars"),
        (Answer(text="The answer is 3.5. Or so it seems"), "3.5"),
        (Answer(text="it takes 3 days"), "3"),
        (Answer(text="no idea"), ""),
        (Answer(final="C", text="#### 9"), "C"),
        (Answer(chars=9), None),
    ],
)
def test_the_final_answer(answer, final):
    assert answers.final_of(answer) == final


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("1,200", "$1200.00", True), ("7", "8", False), ("C", "c", True), ("", "7", None), ("x+1", "x + 1", True)],
)
def test_whether_two_answers_agree(one, other, same):
    assert answers.same(one, other) is same


def test_sums_are_worked_out_again():
    sums = arithmetic.checked("4 x 125 - 2 = <<4*125-2=498>>498, then $10 * 50% = $5 and (2+3)*4 = 21, 1/0 = 3")
    assert (sums.right, sums.wrong, sums.last) == (2, 1, 21.0)


@given(st.text(alphabet="0123456789+-*/()%. ", max_size=40))
def test_any_expression_is_a_number_or_nothing(text):
    value = arithmetic.evaluate(text)
    assert value is None or math.isfinite(value)


def test_the_unlearned_rule_distrusts_disagreement_most_and_then_no_answer():
    fine, cut, none = Answer(text="It is 7."), Answer(text="Let us denote the num"), Answer(final="")
    signs = acceptance.rule([fine, cut, none])
    assert signs[0] < signs[1] <= signs[2]
    agreed, differs = acceptance.rule([fine, fine], [Answer(final="7"), Answer(final="8")])
    assert differs > agreed + 1


def test_acceptance_learns_what_a_wrong_answer_looks_like():
    rng = random.Random(5)
    prompts, weak, _ = prompts_with_gain(300)
    text = {1.0: "The sum is 3 + 4 = 7.\n#### 7", 0.0: "I am not sure, perhaps it is about 3 + 4 = 9"}
    given_answers = [Answer(text=text[right if rng.random() < 0.9 else 1 - right]) for right in weak]
    fitted = acceptance.fit(acceptance.Examples(prompts, given_answers, weak, np.ones(300), np.zeros(300)))
    assert evaluate.figures("x", fitted.held_out, truth(weak, np.ones(300)), draws=5).apgr > 0.7


# Settings


def test_a_cascade_is_chosen_where_it_pays():
    rng = np.random.default_rng(0)
    weak = (rng.random(1000) < 0.8).astype(float)
    strong = np.ones(1000)
    seen = setting.choose(outcome(np.zeros(1000), weak, strong, after=1 - weak))
    assert seen.kind == "cascade"
    assert seen.pays
    score, cost, escalated = setting.played(seen, outcome(np.zeros(1000), weak, strong, after=1 - weak))
    assert score.mean() >= 0.99
    assert cost.mean() == pytest.approx(0.1 + escalated.mean())


def test_where_nothing_pays_it_says_so():
    rng = np.random.default_rng(0)
    weak = (rng.random(500) < 0.2).astype(float)
    blind = rng.random(500)
    seen = setting.choose(outcome(blind, weak, np.ones(500), after=blind))
    assert (seen.kind, seen.pays) == ("always strong", False)
    assert "does not pay" in seen.reason
    assert setting.choose(outcome(blind, np.ones(500), weak)).kind == "always weak"


def test_a_prompt_far_from_the_data_goes_to_the_strong_model():
    far = np.array([True, False])
    ones = np.ones(2)
    case = setting.Outcome(np.array([-1.0, -1.0]), far, None, ones, ones, ones, ones, ones, ones)
    chosen = setting.Setting("prompt", 0.0, None, 1.0, 0.0, True, "")
    assert setting.played(chosen, case)[2].tolist() == [True, False]


# The dial


def play(dial, scores):
    chosen = []
    for score in scores:
        chosen.append(dial.choose(score))
        dial.spend(float(chosen[-1]))
    return chosen


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("traffic", ["steady", "elsewhere", "equal", "rising", "switching"])
def test_the_share_is_kept_after_300_requests(share, traffic):
    rng = random.Random(1)
    scores = {
        "steady": [rng.gauss(0, 1) for _ in range(1500)],
        "elsewhere": [rng.gauss(9, 0.01) for _ in range(1500)],
        "equal": [0.5] * 1500,
        "rising": [n / 100 for n in range(1500)],
        "switching": [rng.gauss(5 if n // 200 % 2 else -5, 1) for n in range(1500)],
    }[traffic]
    dial = Dial(strong_share(share), [rng.gauss(0, 1) for _ in range(800)])
    chosen = np.cumsum(play(dial, scores)) / np.arange(1, 1501)
    assert np.abs(chosen[299:] - share).max() <= 0.05
    assert dial.realised_share == pytest.approx(chosen[-1])


def test_the_higher_scores_go_to_the_strong_model():
    rng = random.Random(2)
    scores = [rng.gauss(0, 1) for _ in range(3000)]
    chosen = play(Dial(strong_share(0.3)), scores)
    strong = [score for score, one in zip(scores, chosen, strict=True) if one]
    weak = [score for score, one in zip(scores, chosen, strict=True) if not one]
    assert np.mean(strong) > 0.9
    assert np.mean(weak) < -0.3


def test_a_cost_ceiling_is_kept_though_prompts_differ():
    rng = random.Random(3)
    dial = Dial(mean_cost(4.0, weak=1.0, strong=10.0))
    for _ in range(3000):
        size = rng.uniform(0.5, 1.5)
        dial.spend(size * (10.0 if dial.choose(rng.gauss(0, 1)) else 1.0))
    assert dial.realised_mean == pytest.approx(4.0, abs=0.2)
    with pytest.raises(BadRequest, match="cannot be kept"):
        mean_cost(0.5, weak=1.0, strong=10.0)


def test_a_loss_is_held_where_it_can_be():
    rng = random.Random(4)
    dial = Dial(mean_loss(0.02))
    for _ in range(4000):
        gain = max(0.0, rng.gauss(0.1, 0.1))
        dial.spend(0.0 if dial.choose(gain) else gain)
    assert dial.realised_mean == pytest.approx(0.02, abs=0.005)
    assert 0.2 < dial.realised_share < 0.95


def test_drift_is_told_and_a_stored_dial_goes_on():
    rng = random.Random(5)
    fitted = [rng.gauss(0, 1) for _ in range(1000)]
    dial = Dial(strong_share(0.4), fitted)
    play(dial, [rng.gauss(0, 1) for _ in range(2500)])
    assert dial.drift < 0.12
    play(dial, [rng.gauss(2, 1) for _ in range(2500)])
    assert dial.drift > 0.5
    state = stored.msgspec.msgpack.decode(stored.msgspec.msgpack.encode(dial.state()), type=State)
    rest = [rng.gauss(0, 1) for _ in range(500)]
    assert play(Dial.of(state), rest) == play(dial, rest)
    other = Dial.of(state, strong_share(0.1))
    assert (other.level, other.seen) == (0.1, 0)


def test_a_budget_must_be_one():
    for wrong in (-0.1, 1.5):
        with pytest.raises(BadRequest, match="from 0 to 1"):
            strong_share(wrong)
