"""Plain data for JSON."""

import json
import math

from lucid_deploy.parity.measure.plain_data import plain


def test_what_json_has_no_word_for_is_null():
    data = {"a": (1, math.nan), "b": [math.inf, {"c": -math.inf, "d": 2.5}], "e": "text", "f": None, "g": True}
    assert plain(data) == {"a": [1, None], "b": [None, {"c": None, "d": 2.5}], "e": "text", "f": None, "g": True}
    json.dumps(plain(data), allow_nan=False)
