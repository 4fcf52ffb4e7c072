"""What users and pods send, at random: it is refused or understood, and never more than that."""

from __future__ import annotations

import json
import posixpath
import struct
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tunesmith.api.base import URI_PATTERN, Uri
from tunesmith.children.pods import Input, mounts
from tunesmith.decide import pods
from tunesmith.inspecting import model
from tunesmith.inspecting.refusal import Refusal
from tunesmith.settings import Settings
from tunesmith.training.location import CLAIMS, CONFIG_MAPS, FETCHED, locate
from tunesmith.training.report import Ending

ADDRESS = TypeAdapter(Uri)
SCHEMES = [
    "pvc://claim/",
    "pvc://",
    "configmap://rows/",
    "hf://",
    "s3://bucket/",
    "https://",
    "file:///",
    "oci://host/",
]
SEGMENTS = st.sampled_from(["..", ".", "", "a", "[", "]", "%2e%2e", "#", "?", "@", "\\", "\x00", "\n", "é", "//"])
WRITTEN = st.builds(
    lambda scheme, parts, end: scheme + "/".join(parts) + end,
    st.sampled_from(SCHEMES),
    st.lists(SEGMENTS | st.text(max_size=5), max_size=8),
    st.sampled_from(["", f"#sha256={'0' * 64}"]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(WRITTEN | st.from_regex(URI_PATTERN, fullmatch=True))
@example("configmap://rows/.")
def test_no_address_leads_out_of_what_it_names(uri: str) -> None:
    try:
        ADDRESS.validate_python(uri)
    except ValidationError:
        return
    place = locate(uri)
    assert "\x00" not in place.path
    assert posixpath.normpath(place.path) == place.path
    roots = {
        place.claim: f"{CLAIMS}/{place.claim}",
        place.config_map: f"{CONFIG_MAPS}/{place.config_map}",
        place.fetch: FETCHED,
    }
    for named, root in roots.items():
        if named:
            assert posixpath.commonpath([root, place.path]) == root
    mounts([Input(uri)], Settings())


@given(st.text() | VALUES.map(json.dumps))
def test_no_last_words_of_a_pod_crash_the_operator(text: str) -> None:
    status = {"containerStatuses": [{"name": "trainer", "state": {"terminated": {"message": text, "exitCode": 1}}}]}
    said = pods.ending({"metadata": {"name": "p"}, "status": status})
    assert said is None or isinstance(said, Ending)


class Written:
    """A model's folder with one file of weights."""

    where = "here"

    def __init__(self, config: bytes, weights: bytes) -> None:
        self.content = {"config.json": config, "model.safetensors": weights}
        self.names = dict.fromkeys(self.content, 0)

    def read(self, name: str, first: int, size: int) -> bytes:
        return self.content[name][first : first + size]


def header(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text


@given(st.binary() | VALUES.map(lambda v: json.dumps(v).encode()), st.binary(max_size=64) | VALUES.map(header))
def test_no_model_crashes_its_inspection(config: bytes, weights: bytes) -> None:
    files: Any = SimpleNamespace(**vars(found := Written(config, weights)), where=found.where, read=found.read)
    with suppress(Refusal):
        model._config("pvc://c/m", files)
    with suppress(Refusal):
        assert isinstance(model._header("pvc://c/m", files, "model.safetensors"), list)
