"""Write a folder with a tokenizer and a chat template, and the bodies of requests to its reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from lucid_deploy.serving.requests import ReaderSetup

MODEL = "m"
ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
# Endless only if the message asks for it, so that one reader can be tried with good and bad requests.
BY_REQUEST = "{% if messages[0].content == 'endless' %}" + ENDLESS + "{% else %}w1 {{ messages[0].content }}{% endif %}"
PANIC = "^(a+)+$"  # the library of regular expressions gives up on many a's followed by a b


def write_setup(directory: Path, template: Any = BY_REQUEST, rule: str | None = None, **more: Any) -> ReaderSetup:
    """Write a tokenizer of the words w0 to w96 (``rule``: a regular expression to split by) and a chat template."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if rule is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rule), "isolated")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({} if template is None else {"chat_template": template})
    )
    bounds: dict[str, Any] = {
        "context": 4096,
        "vocabulary": 100,
        "prompt_tokens": 4096,
        "new_tokens": 100,
        "choices": 8,
    }
    return ReaderSetup(str(directory), (MODEL,), **{**bounds, "reading_seconds": 0.4, **more})


def completion(prompt: Any, **more: Any) -> bytes:
    return json.dumps({"model": MODEL, "prompt": prompt, **more}).encode()


def chat(content: str, **more: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}], **more}).encode()
