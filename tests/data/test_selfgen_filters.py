"""Every filter on texts that a person would judge the same way, and at its limits."""

from __future__ import annotations

import pytest

from onebit.data import selfgen_filters as filters

GOOD = (
    "A vaccine shows the immune system a harmless piece of a germ. White blood cells learn its shape, multiply, and "
    "leave memory cells behind, so that the real infection is met at once."
)
PROGRAM = (
    "def longest(sentence):\n    best = ''\n    for word in sentence.split():\n        if len(word) > len(best):\n"
    "            best = word\n    return best\n\nIt walks over the words and keeps the longest one it has seen."
)
CHINESE = (
    "四季的变化是因为地球的自转轴是倾斜的。当北半球朝向太阳时、那里阳光更直接、白天更长、于是是夏天。"
    "半年后情况相反、就到了冬天。"
)


@pytest.mark.parametrize("text", [GOOD, PROGRAM, CHINESE, "\n".join(f"{n}. Planet number {n}." for n in range(1, 9))])
def test_good_answers_are_kept(text: str) -> None:
    assert filters.drop_reason(text, ()) is None


@pytest.mark.parametrize(("length", "fits"), [(0, False), (31, False), (32, True), (2048, True), (2049, False)])
def test_length_is_counted_in_characters_without_the_ends(length: int, fits: bool) -> None:
    assert filters.has_right_length(f"  \n{'x' * length}\n ") is fits


@pytest.mark.parametrize(
    "text",
    [
        "As an AI, I cannot taste food, but bread is said to be good.",
        "as an AI language model I have no body",
        "Well, I'm just a language model, so take this with care.",
        "I\u2019m an AI and do not know your name.",
        "As a large language model trained on text, I would say yes.",
        "I don't have personal opinions on this matter, but here are the facts.",
        "My knowledge cutoff is 2021.",
    ],
)
def test_disclaimers_are_found(text: str) -> None:
    assert filters.has_disclaimer(text)


@pytest.mark.parametrize(
    "text",
    [
        "Thai food is spicy. As an aide to the minister she wrote speeches.",
        "The paper compares an AI system with a doctor.",
        "I am an airline pilot, and my knowledge of clouds comes from work.",
        "A language model predicts the next word.",
    ],
)
def test_speaking_of_ai_is_no_disclaimer(text: str) -> None:
    assert not filters.has_disclaimer(text)


def test_repeated_share_is_the_share_of_ngrams_seen_before() -> None:
    assert filters.repeated_share("a b c d e f g h") == 0
    # 10 words, 7 four-grams; "a b c d", "b c d e" come a second time
    assert filters.repeated_share("a b c d e a b c d e") == pytest.approx(2 / 7)
    assert filters.repeated_share("no no no no no no no no") == pytest.approx(4 / 5)
    assert filters.repeated_share("too short") == 0


def test_an_answer_that_goes_in_circles_is_dropped() -> None:
    circle = "First we add the flour to the bowl and stir it well with the spoon. "
    assert not filters.is_repetitive(circle)
    assert filters.is_repetitive(circle * 5)
    assert filters.drop_reason(circle * 5, ()) == "repetition"


def test_diversity_counts_different_words_in_stretches() -> None:
    assert filters.word_diversity("a b a b") == pytest.approx(1 / 2)
    assert filters.word_diversity("") == 0
    assert filters.word_diversity("...") == 0
    # 100 words of which 50 differ, then 100 others: the mean of 0.5 and 1; ten more words are left out
    text = " ".join([*(f"a{i % 50}" for i in range(100)), *(f"b{i}" for i in range(100)), *["c"] * 10])
    assert filters.word_diversity(text) == pytest.approx(0.75)


def test_few_different_words_are_dropped_though_no_phrase_comes_twice() -> None:
    import itertools

    text = " ".join(word for trio in itertools.product("uvw", "xyz", "uvx") for word in trio)
    assert filters.repeated_share(text) < filters.MAX_REPEATED_SHARE
    assert filters.drop_reason(text, ()) == "diversity"


def test_signs_without_words_have_no_diversity() -> None:
    assert filters.drop_reason("!?" * 40, ()) == "diversity"


def test_content_hash_sees_through_case_spaces_and_punctuation() -> None:
    assert filters.content_hash("The cat, sat.") == filters.content_hash(" the  CAT\nsat")
    assert filters.content_hash("The cat sat") != filters.content_hash("The cats at")
    assert filters.content_hash("!?") != filters.content_hash("?!")


def test_a_second_answer_with_the_same_content_is_a_duplicate() -> None:
    seen = {filters.content_hash(GOOD)}
    assert filters.drop_reason(GOOD.upper(), seen) == "duplicate"
    assert filters.drop_reason(PROGRAM, seen) is None


def test_words_of_scripts_without_spaces_are_their_signs() -> None:
    assert filters.words("Das Wort, 世界 한국어!") == ["das", "wort", "世", "界", "한국어"]


def test_every_reason_has_its_name() -> None:
    texts = ["short", "As an AI, I cannot say anything about this.", "go on " * 20, "!?" * 40, GOOD]
    found = [filters.drop_reason(text, {filters.content_hash(GOOD)}) for text in texts]
    assert tuple(found) == filters.REASONS
