"""What the checks let through and what they refuse, and that each refusal says what to do."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunesmith.agent import base as bases
from tunesmith.agent import checks, tensors
from tunesmith.agent.footprint import measure
from unit.agent.builders import HIDDEN, INNER, LLAMA, VOCABULARY, Q, make, make_base, pair, write


@pytest.fixture
def base(tmp_path: Path) -> bases.Base:
    return make_base(tmp_path / "base")


def test_a_whole_adapter_passes(tmp_path, base):
    checks.check(make(tmp_path / "a"), base, 8)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"peft_type": None}, "only LORA"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "LoRA bias"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "without modules_to_save"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"use_bdlora": {"a": 1}}, "block-diagonal"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"init_lora_weights": "loftq"}, "changes the base's weights"),
        ({"r": 16}, "maxLoraRank to at least 16"),
        ({"rank_pattern": {"q_proj": 64}}, "maxLoraRank to at least 64"),
        ({"rank_pattern": {"q_proj": "8"}}, "not a positive whole number"),
        ({"rank_pattern": ["q_proj"]}, "not an object"),
        ({"r": 0}, "not a positive whole number"),
        ({"r": True}, "not a positive whole number"),
        ({"r": None}, "not a positive whole number"),
        ({"lora_alpha": None}, "not a number"),
        ({"lora_alpha": float("nan")}, "not a number"),
        ({"target_modules": []}, "adapts nothing"),
        ({"r": 4}, "have rank 8, but adapter_config.json says 4"),
        ({"rank_pattern": {"q_proj": 4}}, "have rank 8, but adapter_config.json says 4"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_served_is_refused(tmp_path, base, config, reason):
    with pytest.raises(checks.CheckError, match=None) as error:
        checks.check(make(tmp_path / "a", **config), base, 8)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            f'{{"eos_token_id": [1, {VOCABULARY}]}}',
            f"is .1, {VOCABULARY}., but the base model .* has {VOCABULARY} tokens",
        ),
        ('{"eos_token_id": -1}', "eos_token_id is -1"),
        ('{"eos_token_id": "</s>"}', "eos_token_id is '</s>'"),
        ('{"eos_token_id": true}', "eos_token_id is True"),
        ("[]", "generation_config.json is not a JSON object"),
        ("{", "generation_config.json is not JSON"),
    ],
)
def test_an_end_of_answers_that_the_base_does_not_know_is_refused(tmp_path, base, text, reason):
    folder = make(tmp_path / "a")
    (folder / checks.GENERATION).write_text(text)
    with pytest.raises(checks.CheckError, match=reason):
        checks.check(folder, base, 8)


@pytest.mark.parametrize("ends", [None, 0, VOCABULARY - 1, [1, 2], []])
def test_ends_of_answers_that_the_base_knows_pass(tmp_path, base, ends):
    folder = make(tmp_path / "a")
    (folder / checks.GENERATION).write_text(json.dumps({"eos_token_id": ends}))
    checks.check(folder, base, 8)


@pytest.mark.parametrize(
    "config",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"modules_to_save": []},
        {"use_rslora": True},
        {"rank_pattern": {"k_proj": 4}},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 8}, "r": 4},
        {"target_modules": "all-linear"},
        {"unknown_field": 1},
    ],
    ids=str,
)
def test_what_the_engine_supports_passes(tmp_path, base, config):
    checks.check(make(tmp_path / "a", **config), base, 8)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({}, "has no tensors"),
        (pair(layer=2), "layers.2.self_attn.q_proj is not in the base model"),
        (pair(fan_in=32, fan_out=32), "made for 32x32 weights, but the base model"),
        (pair(fan_in=HIDDEN, fan_out=128), "has 64x64"),
        ({Q.format(0, "A"): (8, HIDDEN)}, "lora_A without its other half"),
        (pair() | {Q.format(0, "B"): (HIDDEN, 4)}, "lora_A has rank 8, lora_B has 4"),
        (pair() | {Q.format(0, "B"): (HIDDEN, 8, 1)}, "expected two dimensions"),
        (pair("base_model.model.model.layers.{}.mlp.unknown.lora_{}.weight"), "mlp.unknown is not in the base model"),
        (pair() | {"base_model.model.lm_head.weight": (VOCABULARY, HIDDEN)}, "is no part of a LoRA adapter"),
        (pair() | {Q.format(0, "magnitude_vector"): (HIDDEN,)}, "is no part of a LoRA adapter"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_tensors_that_do_not_fit_the_base_are_refused(tmp_path, base, shapes, reason):
    with pytest.raises(checks.CheckError) as error:
        checks.check(make(tmp_path / "a", shapes), base, 8)
    assert reason in str(error.value)


@pytest.mark.parametrize("prefix", ["model.", "", "model.language_model.", "language_model.model."])
def test_what_the_base_is_wrapped_in_does_not_matter(tmp_path, prefix):
    checks.check(make(tmp_path / "a"), make_base(tmp_path / "base", prefix=prefix), 8)


def test_embeddings_and_tied_heads_are_compared(tmp_path, base):
    head = pair("base_model.model.lm_head.lora_{1}.weight", fan_out=VOCABULARY)
    checks.check(make(tmp_path / "head", head), base, 8)
    name = "base_model.model.model.embed_tokens.lora_embedding_"
    checks.check(make(tmp_path / "in", {f"{name}A": (8, VOCABULARY), f"{name}B": (HIDDEN, 8)}), base, 8)
    with pytest.raises(checks.CheckError, match="made for 97x64"):
        checks.check(make(tmp_path / "bad", {f"{name}A": (8, 97), f"{name}B": (HIDDEN, 8)}), base, 8)


def test_transposed_layers_are_compared_transposed(tmp_path):
    folder = tmp_path / "gpt2"
    write(folder / "model.safetensors", {"h.0.attn.c_attn.weight": (HIDDEN, 3 * HIDDEN)})
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    name = "base_model.model.transformer.h.{}.attn.c_attn.lora_{}.weight"
    adapter = make(tmp_path / "a", pair(name, fan_out=3 * HIDDEN), fan_in_fan_out=True)
    checks.check(adapter, bases.read(folder), 8)
    with pytest.raises(checks.CheckError, match="trained on another base"):
        checks.check(make(tmp_path / "b", pair(name, fan_out=3 * HIDDEN)), bases.read(folder), 8)


def test_a_quantised_base_is_compared_by_its_config(tmp_path):
    folder = tmp_path / "awq"
    write(folder / "model.safetensors", {"model.layers.0.self_attn.q_proj.qweight": (HIDDEN, 8)}, dtype="I32")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    checks.check(make(tmp_path / "a"), bases.read(folder), 8)
    with pytest.raises(checks.CheckError, match="made for 32x32"):
        checks.check(make(tmp_path / "b", pair(fan_in=32, fan_out=32)), bases.read(folder), 8)


def test_a_packed_module_of_an_unknown_architecture_is_compared_by_name(tmp_path):
    folder = tmp_path / "odd"
    write(folder / "model.safetensors", {"model.layers.0.self_attn.q_proj.qweight": (HIDDEN, 8)}, dtype="I32")
    (folder / "config.json").write_text('{"model_type": "odd"}')
    checks.check(make(tmp_path / "a"), bases.read(folder), 8)
    with pytest.raises(checks.CheckError, match=r"layers.1.self_attn.q_proj is not in the base"):
        checks.check(make(tmp_path / "b", pair(layer=1)), bases.read(folder), 8)


@pytest.mark.parametrize("config", [None, "{", '{"model_type": "odd"}'])
def test_a_base_that_cannot_be_read_says_what_to_do(tmp_path, config):
    (tmp_path / "base").mkdir()
    if config:
        (tmp_path / "base" / "config.json").write_text(config)
    with pytest.raises(bases.BaseError, match=r"mount the model|convert the base"):
        bases.read(tmp_path / "base")


def test_files_that_are_missing_or_of_another_kind_are_named(tmp_path, base):
    with pytest.raises(checks.CheckError, match=r"adapter_config.json is not there"):
        checks.check(tmp_path, base, 8)
    folder = make(tmp_path / "a")
    (folder / checks.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(checks.CheckError, match=r"only adapter_model.bin: only safetensors"):
        checks.check(folder, base, 8)
    for text in ("{", "[]", "\x00", "[" * 100_000):
        (folder / checks.CONFIG).write_text(text)
        with pytest.raises(checks.CheckError, match="save the adapter again"):
            checks.check(folder, base, 8)


@pytest.mark.parametrize("cut", [1, 100, 2048, 4000])
def test_a_truncated_file_is_refused(tmp_path, base, cut):
    folder = make(tmp_path / "a")
    write(folder / checks.WEIGHTS, pair(), cut=cut)
    with pytest.raises(checks.CheckError, match="truncated"):
        checks.check(folder, base, 8)


@pytest.mark.parametrize(
    "edit", [{"data_offsets": [0, 3]}, {"data_offsets": [-4, 8]}, {"shape": "8"}, {"dtype": None}, {"shape": [-1, 2]}]
)
def test_a_header_that_lies_is_refused(tmp_path, base, edit):
    folder = make(tmp_path / "a")
    write(folder / checks.WEIGHTS, pair(), **edit)
    with pytest.raises(checks.CheckError):
        checks.check(folder, base, 8)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_header_reader(data):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.safetensors"
        path.write_bytes(data)
        try:
            assert isinstance(tensors.read(path), dict)
        except tensors.HeaderError as error:
            assert path.name in str(error)  # noqa: PT017 (either outcome is right)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_no_json_crashes_the_header_reader(value):
    text = json.dumps({"tensor": value}).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(tensors.HeaderError):
            tensors.read(path)


def test_the_footprint_of_a_base_by_hand(tmp_path):
    base = make_base(tmp_path)
    found = measure(tmp_path, base, "auto", max_rank=8, max_loras=3)
    numbers = VOCABULARY * HIDDEN + 2 * (HIDDEN * HIDDEN + HIDDEN * HIDDEN // 2 + HIDDEN * INNER + HIDDEN)
    assert found.weights_bytes == 2 * numbers
    assert measure(tmp_path, base, "float32", 8, 3).weights_bytes == 4 * numbers
    # Two layers, keys and values, two heads of 16 numbers, two bytes each.
    assert found.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    # All linear layers of the architecture, whether the file has them or not.
    sides = 2 * (2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + HIDDEN // 2) + 3 * (HIDDEN + INNER))
    assert found.adapters_bytes == 3 * 8 * sides * 2
    assert found.quantization is None
    config = json.loads((tmp_path / "config.json").read_text())
    how = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": how}))
    assert measure(tmp_path, base, "auto", 8, 3).quantization == "compressed-tensors pack-quantized"
