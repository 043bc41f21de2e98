"""The vocabulary of the needle tasks: 32 · 64 keys of two words, 30 · 28 values of two words, 64 variables, filler."""

from __future__ import annotations

from recall_training.words import SPECIAL

from lucid_deploy.demo import recall
from lucid_deploy.evaluation.needles import CITIES


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COMMA, STOP, COLON = ",", ".", ":"
HOLDS, GOES, ALSO, INTO = "holds", "goes", "also", "into"
SIGNS = (COMMA, STOP, COLON, HOLDS, GOES, ALSO, INTO)  # words that tell sentences of one kind apart in no way

TRAITS = _words(
    "able angry brave bright busy calm clever curious eager fair famous fast fierce gentle grumpy happy hungry jolly "
    "lazy lucky merry mighty noble polite proud quick quiet shy sleepy strong tired wise"
)
OWNERS = recall.ANIMALS  # a key is a trait and an owner: "proud fox"
LOOKS, THINGS = recall.ADJECTIVES, recall.THINGS  # a value is a look and a thing: "red lamp"
VARIABLES = tuple(city.lower() for city in CITIES[:64])
PLACES = _words(
    "weather river market garden morning harbour kitchen letter music road school station theatre train village winter"
)
OFTEN = _words("almost always hardly never often rarely still very")
STATES = _words(
    "beautiful boring crowded distant expensive foggy friendly frozen modern noisy peaceful pleasant rainy simple "
    "silent sunny"
)

WORDS = (*SIGNS, "the", "was", *TRAITS, *OWNERS, *LOOKS, *THINGS, *VARIABLES, *PLACES, *OFTEN, *STATES)
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
