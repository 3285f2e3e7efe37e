"""The quality filters of self-generated answers, each a function of one answer, and the order they are asked in.

What shaped them: an answer is dropped for one nameable reason, the same on every machine and whatever came before,
except that a second answer with the same content is a duplicate of the first. Words are those of `words`, which takes
a language without spaces sign by sign, so that every threshold means something there too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection

__all__ = [
    "MAX_CHARACTERS",
    "MIN_CHARACTERS",
    "MIN_WORD_DIVERSITY",
    "REASONS",
    "content_hash",
    "drop_reason",
    "has_disclaimer",
    "has_right_length",
    "is_diverse",
    "is_repetitive",
    "repeated_share",
    "word_diversity",
    "words",
]

MIN_CHARACTERS, MAX_CHARACTERS = 32, 2048
NGRAM = 4
# Good prose and lists repeat up to a tenth of their 4-grams, program text and tables up to a third; a model that goes
# in circles repeats nearly all.
MAX_REPEATED_SHARE = 0.4
# Counted in stretches, for the longer a text, the more of its words have been used: of 100 words of prose 60 to 75 are
# different ones, and about as many of 100 Chinese signs.
STRETCH = 100
MIN_WORD_DIVERSITY = 0.3

REASONS = ("length", "disclaimer", "repetition", "diversity", "duplicate")

# Scripts written without spaces: Thai, kana, Han; each sign counts as a word. \w+ takes all others (Hangul has spaces).
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

_DISCLAIMER = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|virtual assistant|chatbot)\b"
    r"|\bi(?:'m| am) (?:just |only |merely )?an? (?:ai|artificial intelligence|(?:large )?language model|chatbot)\b"
    r"|\bi (?:do not|don't) have (?:personal (?:opinions?|experiences?|feelings|beliefs|preferences)|a physical body)\b"
    r"|\bmy (?:knowledge|training) (?:cut-?off|data (?:ends|goes up to))\b",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words of a text in lower case; in scripts without spaces every sign is one."""
    return _WORD.findall(text.casefold())


def has_right_length(text: str) -> bool:
    """32 to 2048 characters, white space at the ends not counted."""
    return MIN_CHARACTERS <= len(text.strip()) <= MAX_CHARACTERS


def has_disclaimer(text: str) -> bool:
    """True when the answer speaks of being an AI ("as an AI", "I'm just a language model") instead of answering."""
    return _DISCLAIMER.search(text.replace("\u2019", "'")) is not None


def repeated_share(text: str, n: int = NGRAM) -> float:
    """The share of the n-grams of words that stood in the text before; 0 for a text of fewer than n + 1 words."""
    tokens = words(text)
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def is_repetitive(text: str) -> bool:
    """True when the answer goes in circles: more than 40 % of its 4-grams of words stood in it before."""
    return repeated_share(text) > MAX_REPEATED_SHARE


def word_diversity(text: str) -> float:
    """Different words over words, in (0, 1], the mean over stretches of 100 words; 0 for a text without words.

    What remains after the last whole stretch is left out, unless it is all there is.
    """
    tokens = words(text)
    starts = range(0, max(len(tokens) - STRETCH, 0) + 1, STRETCH)
    stretches = [tokens[start : start + STRETCH] for start in starts]
    return sum(len(set(stretch)) / len(stretch) for stretch in stretches) / len(stretches) if tokens else 0.0


def is_diverse(text: str) -> bool:
    """True when at least 30 % of the words are different ones."""
    return word_diversity(text) >= MIN_WORD_DIVERSITY


def content_hash(text: str) -> str:
    """A hash of what the answer says: case, white space and punctuation make no other answer.

    An answer of signs only, which has no words, is hashed as it stands.
    """
    content = " ".join(words(text)) or text.strip()
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def drop_reason(text: str, seen: Collection[str]) -> str | None:
    """Why an answer is dropped, one of `REASONS`, or None for one to keep. `seen`: the hashes of the kept ones."""
    if not has_right_length(text):
        return "length"
    if has_disclaimer(text):
        return "disclaimer"
    if is_repetitive(text):
        return "repetition"
    if not is_diverse(text):
        return "diversity"
    return "duplicate" if content_hash(text) in seen else None
