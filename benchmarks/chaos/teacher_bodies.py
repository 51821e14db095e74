"""Bodies of scoring requests for schemathesis, which imports this module (SCHEMATHESIS_HOOKS). Some are valid."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save

from rlad.teacher.wire_format import MEDIA_TYPE

_FIELDS = {"uid": "d:0:1", "attempt": 0, "temperature": 1.0, "support": None, "tokenizer": "t", "client": "c"}


def _body(columns: dict[str, Any], fields: dict[str, Any]) -> bytes:
    packed: bytes = save(columns, metadata={"words": json.dumps({**_FIELDS, **fields})})
    return packed


def _group(tokens: list[int], support: int | str | None) -> bytes:
    columns = {
        "prompt_ids": np.array([1, 2], np.int32),
        "response_ids": np.array(tokens, np.int32),
        "response_offsets": np.array([0, len(tokens)], np.int64),
    }
    return _body(columns, {"support": support})


_COLUMNS = st.dictionaries(
    st.sampled_from(["prompt_ids", "response_ids", "response_offsets"]),
    arrays.arrays(
        st.sampled_from([np.int32, np.int64, np.float32]), arrays.array_shapes(min_dims=0, max_dims=2, max_side=4)
    ),
    min_size=1,
)
_FIELD_VALUES = st.dictionaries(
    st.sampled_from([*_FIELDS, "other"]),
    st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
    max_size=2,
)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.builds(_body, _COLUMNS, _FIELD_VALUES),
    st.builds(_group, st.lists(st.integers(-1, 1100), max_size=8), st.none() | st.integers(0, 1100) | st.just("full")),
)

schemathesis.openapi.media_type(MEDIA_TYPE, BODIES)
