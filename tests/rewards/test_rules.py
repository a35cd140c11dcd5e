from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heed.errors import UserError
from heed.records import Prompt, Rollout
from heed.rewards import Reward, haiku, length_target, regex, repetition_penalty
from heed.rewards.syllables import count_syllables


def rollout(text: str) -> Rollout:
    return Rollout(Prompt("p"), (1,), (2,), (0.0,), text, "stop")


def score(reward: Reward, text: str) -> float:
    (found,) = reward([rollout(text)]).tolist()
    return found


@pytest.mark.parametrize("reward", [length_target(3), regex("a"), repetition_penalty(), haiku()])
def test_a_rule_gives_one_finite_float32_score_for_each_rollout(reward: Reward):
    texts = ["", " ", "\n\n\n", "a b c", "élan 🦊 5", "-" * 500, "word " * 500, "x\ny\nz\n" * 50]
    scores = reward([rollout(t) for t in texts])
    assert scores.shape == (len(texts),)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert torch.equal(scores, torch.cat([reward([rollout(t)]) for t in texts]))
    assert reward([]).shape == (0,)


def test_length_target_is_highest_at_the_target_and_falls_on_both_sides():
    scores = [score(length_target(4), "word " * n) for n in range(10)]
    assert scores[4] == 1
    assert scores[0] == 0
    assert scores[:5] == sorted(set(scores[:5]))
    assert scores[4:] == sorted(set(scores[4:]), reverse=True)
    assert score(length_target(4), "a\tb \n c") == pytest.approx(0.75)
    with pytest.raises(UserError, match="num_words is 0"):
        length_target(0)


def test_regex_finds_anywhere_and_refuses_what_is_none():
    assert score(regex(r"\bsorry\b"), "I am sorry.") == 1
    assert score(regex(r"\bsorry\b"), "Sorrysorry") == 0
    assert score(regex(r"(?i)^yes"), "no\nyes") == 0
    with pytest.raises(UserError, match="unterminated"):
        regex("(")


def test_repetition_penalty_by_hand():
    assert score(repetition_penalty(1), "a b c d") == 0
    assert score(repetition_penalty(1), "a A a b") == pytest.approx(2 / 4 - 1)
    assert score(repetition_penalty(2), "a b a b a") == pytest.approx(2 / 4 - 1)  # ab ba ab ba
    assert score(repetition_penalty(3), "a b") == 0  # too short to repeat anything
    assert score(repetition_penalty(2), "no " * 1000) == pytest.approx(1 / 999 - 1)


# Haiku

HAIKU = [
    "The old, quiet pond;\na green frog leaps from the bank:\nthe sound of water.",  # after Basho
    "Lightning in the night.\nInto the dark there passes\nthe cry of wild geese.",  # after Basho
    "A world made of dew,\nnothing but a world of dew.\nAnd yet... and yet... yet...",  # after Issa
    "Spring rain: a letter\nthrown into the bamboo grove\ntumbles in the wind.",  # after Issa
    "Fireflies come and go,\neverywhere a little light;\nsomeone calls them home.",
    "The first cold evening:\nchildren's voices drift across\nthe fields we have cut.",
    "An empty playground,\none yellow leaf on the slide\nwaiting for its turn.",
    "She couldn't find me.\nI'd hidden behind the door\nwe'd painted purple.",
    "\n  Beneath the ice, still  \n\n\n  the river's conversation\n  with itself, with stones  \n",
    "Chrysanthemum, white:\na beetle wanders its rim;\nthe garden listens.",
]


@pytest.mark.parametrize("poem", HAIKU)
def test_real_haiku_score_1(poem: str):
    assert score(haiku(), poem) == 1


@pytest.mark.parametrize(
    ("poem", "expected"),
    [
        ("Refrigerator\nrefrigerator, and so\nrefrigerator", 1.0),
        ("Over the wintry\nforest, winds howl in a rage\nwith no leaves to blow to.", (1 + 1 + 4 / 5) / 3),  # 5-7-6
        ("The old, quiet pond;\na frog leaps:\nthe sound of water.", (1 + 3 / 7 + 1) / 3),  # 5-3-5
        ("The old, quiet pond;\na green frog leaps from the bank:", 2 / 3),  # the last line is missing
        ("The old, quiet pond;\na green frog leaps from the bank:\nthe sound of water.\nThe end.", 3 / 4),
        ("Haiku:\n\nThe old, quiet pond;\na green frog leaps from the bank:\nthe sound of water.", None),  # a title shifts the lines
        ("The old, quiet pond; a green frog leaps from the bank: the sound of water.", 0.0),  # 17 syllables in one line
        ("", 0.0),
        ("-----\n-------\n-----", 0.0),
    ],
)
def test_what_is_no_haiku_scores_how_near_it_is(poem: str, expected: float | None):
    if expected is None:
        assert 0 < score(haiku(), poem) < 0.6
    else:
        assert score(haiku(), poem) == pytest.approx(expected, abs=1e-6)


@given(st.text(max_size=200))
def test_a_haiku_score_is_a_share(text: str):
    assert 0 <= score(haiku(), text) <= 1


def test_each_step_towards_a_haiku_is_worth_more():
    steps = [
        "the",
        "the old",
        "the old pond",
        "the old quiet pond",
        "the old quiet pond\na frog",
        "the old quiet pond\na frog leaps from it\nsplash",
    ]
    scores = [score(haiku(), s) for s in steps]
    assert scores == sorted(set(scores))


# Syllables

SYLLABLES = {
    1: """the she bed through strength moon eye eyes were there gone love loves whose walked played tied cried filled freed shoes
        times homes clothes breathes leagues tongue queen squad fruit juice guide priest pier friend year world smile owe cheese
        I'm we've don't won't aren't isle aches splash dawn sleeves ridge hmm 1""",
    2: """little apples settled tumbled hundred acre roses boxes pages wishes wanted naked hopeful careless lonesome something
        homeward lovely rely reward cement safety fireflies homesick eyelid nineteen lion quiet science giant special nation million
        onion fashion patient cherries people pigeon ocean create creature being playing flying drawing cruel fluid poem chaos
        beyond royal lawyer yellow prism rhythm unique fatigue argue every evening naïve café couldn't haven't horse's it'd
        would've that'll flower desire vineyard elsewhere limestone someone released stampede 7""",
    3: """violet piano radio curious period chariot audience happier loneliest carelessness video theory idea areas gradual
        influence continued tuition oasis heroic element settlement beautiful dragonfly cicada hyacinth silhouette recipe
        everything anyone history different caresses pineapple delicious nightingale twentieth arguing butterfly""",
    4: """experience society reality appreciate biology geography chrysanthemum caterpillar february harmonious mysterious
        continuous aquarium cooperate anemone catastrophe environment community""",
    5: "imagination opportunity university refrigerator curiosity electricity",
}


@pytest.mark.parametrize(("count", "word"), [(count, word) for count, words in SYLLABLES.items() for word in words.split()])
def test_syllables_of_words(count: int, word: str):
    assert count_syllables(word) == count


@given(st.lists(st.sampled_from([w for words in SYLLABLES.values() for w in words.split() if "'" not in w]), max_size=8))
def test_a_text_has_the_syllables_of_its_words_however_they_are_written(words: list[str]):
    total = sum(count_syllables(word) for word in words)
    assert (
        count_syllables(" ".join(words)) == count_syllables(" — ".join(words).upper() + "!") == count_syllables("\n".join(words)) == total
    )


def test_either_apostrophe_will_do():
    assert count_syllables("The horse’s mane, couldn’t") == count_syllables("The horse's mane, couldn't") == 6
