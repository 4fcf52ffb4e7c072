"""Rounding by data: closer to the model than to nearest on text that was not read, in the same form on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from trainer.conftest import make_tokenizer
from tunesmith.api.mergejob import MergeJobSpec
from tunesmith.api.quantization import CalibrationAlgorithm, QuantizationMethod
from tunesmith.training.plan import CalibrationPlan, DatasetPlan, Place, QuantizationPlan
from tunesmith.training.planning import quantization_plan
from tunesmith_trainer.__main__ import main
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.export import FORMATS, calibrated, export
from tunesmith_trainer.model import load_tokenizer

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore:.*is an Enum subclass"),
    pytest.mark.filterwarnings("ignore::UserWarning:llmcompressor.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:llmcompressor.*"),
]

DOCS = Path(__file__).parents[2] / "docs"
READ, HELD_OUT = ("start.md", "export.md"), "concepts.md"
ROW, ROWS = 64, 16
OUTLIERS: dict[CalibrationAlgorithm, float] = {"GPTQ": 1, "AWQ": 1 / 16, "SmoothQuant": 16}
"""By what some channels before the linear layers are multiplied, and the layers' columns divided: outliers of weights
or of activations, as large models have them. The model computes the same.
"""


def pieces(name: str) -> list[str]:
    text = (DOCS / name).read_text()
    return [text[at : at + 2 * ROW] for at in range(0, len(text) - 2 * ROW, 2 * ROW)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers that has learned a little of this project's documentation."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    ids = torch.tensor(tokenizer("".join((DOCS / name).read_text() for name in READ))["input_ids"])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(80):
        batch = torch.stack([ids[at : at + ROW] for at in torch.randint(0, len(ids) - ROW, (8,))])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("learned")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_outliers(source: Path, factor: float, folder: Path) -> Path:
    """The same function, with some channels multiplied before the layers that read them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[::16] *= factor
                for reader in readers:
                    reader.weight[:, ::16] /= factor
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def data(folder: Path) -> DatasetPlan:
    path = folder / "rows.jsonl"
    rows = [one for name in READ for one in pieces(name)][:ROWS]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return DatasetPlan(uri=f"file://{path}", path=str(path))


def plan_of(
    method: QuantizationMethod, algorithm: CalibrationAlgorithm | None, dataset: DatasetPlan
) -> QuantizationPlan:
    by = CalibrationPlan(algorithm=algorithm, dataset=dataset, max_length=ROW) if algorithm else None
    return QuantizationPlan(method=method, group_size=32 if method == "W4A16" else None, calibration=by, tolerance=1)


def held_out_logits(folder: Path) -> list[Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return [model(**tokenizer(text, return_tensors="pt")).logits[0].float() for text in pieces(HELD_OUT)[:12]]


@pytest.mark.parametrize(
    ("method", "algorithm", "most"),
    # Of W8A8's error most is of the activations, which GPTQ leaves as they are.
    [("W4A16", "GPTQ", 0.95), ("W4A16", "AWQ", 0.95), ("W8A8", "GPTQ", 1.0), ("W8A8", "SmoothQuant", 0.95)],
)
def test_calibrated_weights_are_closer_on_text_that_was_not_read_and_lie_on_disk_as_rounded_ones_do(
    learned: Path, tmp_path: Path, method: QuantizationMethod, algorithm: CalibrationAlgorithm, most: float
) -> None:
    from tunesmith_trainer import comparison

    model = with_outliers(learned, OUTLIERS[algorithm], tmp_path / "model")
    source, folders = (
        Place(uri="pvc://models/learned", path=str(model)),
        (tmp_path / "nearest", tmp_path / "calibrated"),
    )
    for folder, how in zip(folders, (None, algorithm), strict=True):
        folder.mkdir()
        export(source, plan_of(method, how, data(tmp_path)), folder)
    expected = held_out_logits(model)
    nearest, closer = (comparison.logit_error(expected, held_out_logits(folder)) for folder in folders)
    assert 0 < closer < most * nearest, (closer, nearest)

    def stored(folder: Path) -> dict[str, tuple[str, list[int]]]:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return {
                name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118
            }

    # Engines read both the same way.
    assert stored(folders[0]) == stored(folders[1])
    one, other = (json.loads((folder / "config.json").read_text())["quantization_config"] for folder in folders)
    scheme = {"num_bits", "type", "strategy", "group_size", "symmetric", "dynamic"}
    for part in ("weights", "input_activations"):
        left, right = (found["config_groups"]["group_0"].get(part) or {} for found in (one, other))
        assert {name: left.get(name) for name in scheme} == {name: right.get(name) for name in scheme}
    assert [one[name] for name in ("format", "ignore", "quant_method")] == [
        other[name] for name in ("format", "ignore", "quant_method")
    ]
    assert (folders[1] / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_rows_are_read_as_the_model_sees_them_as_many_and_as_long_as_asked(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world " * 50}]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for _ in range(6)))
    tokenizer = load_tokenizer(Place(uri="pvc://models/tiny", path=str(tiny)))
    dataset = DatasetPlan(uri="configmap://a/rows.jsonl", path=str(path), sample=4)
    found = calibrated.tokens(CalibrationPlan(algorithm="GPTQ", dataset=dataset, max_length=20), tokenizer)
    assert [len(row) for row in found] == [20] * 4
    assert tokenizer.decode(found[0]).startswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nworld")
    every = dataset.model_copy(update={"sample": None})
    assert len(calibrated.tokens(CalibrationPlan(algorithm="GPTQ", dataset=every, max_length=20), tokenizer)) == 6


def test_without_llm_compressor_it_is_said_what_to_install(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    with pytest.raises(ConfigError, match=r"spec.quantization.calibration: .* tunesmith-trainer\[calibration\]"):
        export(Place(uri="x", path=str(tiny)), plan_of("W4A16", "GPTQ", data(tmp_path)), tmp_path)


def test_the_command_takes_a_file_and_refuses_what_does_not_go_together(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = data(tmp_path)
    command = ["export", str(learned), "--out", str(tmp_path / "out"), "--data", rows.path]
    for method, algorithm, why in (
        ("W8A8", "AWQ", "AWQ is only for W4A16"),
        ("W4A16", "SmoothQuant", "SmoothQuant is only for W8A8"),
        ("FP8", "GPTQ", "calibration is only for W4A16 and W8A8"),
    ):
        assert main([*command, "--method", method, "--algorithm", algorithm]) == 64
        assert why in capsys.readouterr().err
    assert main(["export", str(learned), "--out", str(tmp_path / "out"), "--method", "W8A8", "--sample", "3"]) == 64
    assert "only with --data" in capsys.readouterr().err
    assert main([*command, "--method", "W8A8", "--sample", "5", "--max-length", "32", "--tolerance", "0.5"]) == 0
    assert "GPTQ: calibrated by 5 rows" in capsys.readouterr().out


def test_the_example_is_such_a_plan() -> None:
    import yaml

    example = Path(__file__).parents[2] / "examples" / "export" / "gptq.yaml"
    spec = MergeJobSpec.model_validate(yaml.safe_load(example.read_text())["spec"])
    assert spec.quantization
    plan = quantization_plan(spec.quantization)
    assert plan.calibration
    assert (plan.method, plan.calibration.algorithm, plan.calibration.dataset.path) == (
        "W4A16", "GPTQ", "/mnt/configmaps/self-cognition/general.jsonl"
    )  # fmt: skip
    assert plan.method in FORMATS
