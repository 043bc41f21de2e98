"""The fields of a body that say how tokens are chosen and what the answer must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import (
    NAMES,
    Constraint,
    OncePerConstraint,
    constraint_of,
    from_json_schema,
    named,
)
from lucid_deploy.generation.guide import GuideFactory
from lucid_deploy.generation.sampling import Sampling, bad_word_ids, logit_bias
from lucid_deploy.json_fields import FieldError
from lucid_deploy.serving.bodies import ResponseFormat, SamplingFields


class ConstraintReader:
    """Reads what answers must be, and tries whether an answer can begin.

    Args:
        tokenizer: The artifact's.
        vocabulary: Tokens that the model knows.
    """

    def __init__(self, tokenizer: TextTokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._guides: GuideFactory | None = None
        # That an answer can begin, and not what was compiled: what one body left would count as the next one's memory.
        self._try = OncePerConstraint(self._begin, 1024)

    def read(self, body: SamplingFields) -> Constraint | None:
        """Return the constraint that a body asks for, or None.

        Raises:
            FieldError: There are several, or it cannot be enforced.
        """
        name, found = "response_format", _formatted(body.response_format)
        given = {name: getattr(body, name) for name in NAMES}
        other = next((name for name in NAMES if given[name] is not None), None)
        if other is not None:
            if found is not None:
                raise FieldError(f"{other} cannot be combined with response_format.", other, "invalid_value")
            name, found = other, constraint_of(given)
        if found is not None:
            self.check(name, found)
        return found

    def check(self, name: str, constraint: Constraint) -> None:
        """Try whether an answer can begin.

        Args:
            name: The field that asks for it.
            constraint: Well-formed.

        Raises:
            FieldError: It is too costly, or the vocabulary has no token that fits.
        """
        with named_field(name):
            self._try(constraint)

    def _begin(self, constraint: Constraint) -> None:
        if self._guides is None:
            self._guides = GuideFactory(self._tokenizer, self._vocabulary, [], kept=0)
        self._guides.check(constraint)


def _formatted(given: ResponseFormat | None) -> Constraint | None:
    if given is not None and given.type != "json_schema" and given.json_schema is not None:
        where = "response_format.json_schema"
        raise FieldError(f"{where} is for the type json_schema.", where, "invalid_value")
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return from_json_schema({"type": "object"})
    if given.json_schema is None:
        raise FieldError(
            "The field response_format.json_schema is missing.", "response_format.json_schema", "missing_field"
        )
    where, schema = "response_format.json_schema.schema", given.json_schema.schema
    if schema is None:
        raise FieldError(f"The field {where} is missing.", where, "missing_field")
    return named(where, from_json_schema, schema)


def sampling_of(body: SamplingFields, tokenizer: TextTokenizer, vocabulary: int) -> Sampling:
    """Return how tokens are chosen.

    Raises:
        FieldError: A number is out of range, or a token is outside the vocabulary.
    """
    with named_field("bad_words"):
        bad_words = bad_word_ids(body.bad_words or (), tokenizer)
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=None if body.seed is None else body.seed % 2**64,  # the generator takes no negative ones
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        bad_words=bad_words,
    )
    with named_field("logit_bias"):
        sampling = replace(sampling, logit_bias=logit_bias(body.logit_bias or {}))
        sampling.check(vocabulary)
    return sampling


def guides_of(tokenizer: TextTokenizer, vocabulary: int, ends: list[int]) -> GuideFactory | None:
    """Return what holds answers to constraints; None if the library for it is not installed."""
    return GuideFactory(tokenizer, vocabulary, ends) if find_spec("llguidance") is not None else None


@contextmanager
def named_field(name: str) -> Iterator[None]:
    """Say of an error in the body of the ``with`` which field it is about."""
    try:
        yield
    except FieldError:
        raise
    except LucidError as error:
        message = str(error) if str(error).startswith(name) else f"{name}: {error}"
        raise FieldError(message, name, "invalid_value") from error
