"""Quantised models: stored as the format says, loaded by its own reader, and refused where they are too far off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainer.support import artifact_path
from tunesmith.agent import base
from tunesmith.agent.footprint import measure
from tunesmith.api.mergejob import MergeJobSpec
from tunesmith.training.plan import Job, Place, QuantizationPlan, TrainPlan
from tunesmith.training.planning import merge_plan, quantization_plan
from tunesmith_trainer.__main__ import main
from tunesmith_trainer.errors import CheckFailed, ConfigError
from tunesmith_trainer.export import FORMATS, compressed, export
from tunesmith_trainer.merge import merge
from tunesmith_trainer.train import train

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore:.*is an Enum subclass"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "export" / "fp8.yaml"
# Quantiles of the normal distribution: arXiv 2305.14314, appendix E.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
NAME = "model.layers.0.mlp.up_proj."


def place(folder: Path) -> Place:
    return Place(uri="pvc://models/tiny", path=str(folder))


def plan_of(method: Any, tolerance: float = 1.0) -> QuantizationPlan:
    return QuantizationPlan(method=method, group_size=32 if method == "W4A16" else None, tolerance=tolerance)


def by_hand(weight: Any, method: str) -> Any:
    """What the stored numbers stand for: each row, or group of 32 in it, in steps of its largest value."""
    import torch

    if method == "NF4":
        blocks = weight.reshape(-1, 64)
        top = blocks.abs().amax(-1, keepdim=True)
        values = torch.tensor(NF4)
        return (values[(blocks / top).unsqueeze(-1).sub(values).abs().argmin(-1)] * top).reshape(weight.shape)
    rows = weight.unflatten(-1, (-1, 32)) if method == "W4A16" else weight.unsqueeze(1)
    top = rows.abs().amax(-1, keepdim=True)
    if method == "FP8":
        scale = top / 448
        return ((rows / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(rows.dtype) * scale).flatten(1)
    half = {"W8A8": 127.5, "W4A16": 7.5}[method]
    scale = top / half
    return ((rows / scale).round().clamp(-half - 0.5, half - 0.5) * scale).flatten(1)


def unpack(packed: Any) -> Any:
    """Eight 4-bit numbers of each int32, the lowest bits first, each 8 too large."""
    import torch

    return torch.stack([(packed >> (4 * index)) & 15 for index in range(8)], dim=-1).flatten(1) - 8


@pytest.mark.parametrize("method", ["FP8", "W8A8", "W4A16"])
def test_what_is_stored_is_the_weight_rounded_to_nearest(tiny: Path, tmp_path: Path, method: str) -> None:
    import torch
    from safetensors.torch import load_file

    compressed.write(place(tiny), plan_of(method), tmp_path)
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    scale = after[NAME + "weight_scale"].float()
    if method == "W4A16":
        numbers = unpack(after[NAME + "weight_packed"]).float()
        found = (numbers.unflatten(-1, (-1, 32)) * scale.unsqueeze(-1)).flatten(1)
    else:
        assert after[NAME + "weight"].dtype == (torch.float8_e4m3fn if method == "FP8" else torch.int8)
        found = after[NAME + "weight"].float() * scale
    assert torch.allclose(found, by_hand(before[NAME + "weight"], method), atol=1e-6)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize("method", ["FP8", "W8A8", "W4A16", "NF4"])
def test_the_reported_error_is_that_of_rounded_weights_and_activations(tiny: Path, tmp_path: Path, method: str) -> None:
    import torch
    from tunesmith_trainer import comparison
    from tunesmith_trainer.model import load_model, load_tokenizer

    error = export(place(tiny), plan_of(method), tmp_path)
    assert 0 < error < {"FP8": 0.15, "W8A8": 0.05, "W4A16": 0.4, "NF4": 0.4}[method]
    tokenizer, model = load_tokenizer(place(tiny)), load_model(place(tiny), torch.float32)
    expected = comparison.logits(model, tokenizer)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not model.get_output_embeddings():
            layer.weight.data = by_hand(layer.weight.data, method)
            if method in {"FP8", "W8A8"}:  # of each token
                layer.register_forward_pre_hook(
                    lambda _, given: by_hand(given[0].flatten(0, 1), method).reshape(given[0].shape)
                )
    by = comparison.logit_error(expected, comparison.logits(model, tokenizer))
    # NF4's scales are rounded, too, and it computes in bfloat16.
    assert error == pytest.approx(by, rel=0.1 if method == "NF4" else 0.02)


@pytest.mark.parametrize("method", ["FP8", "W8A8", "W4A16", "NF4"])
def test_an_engines_agent_knows_the_layers_and_the_bytes_of_what_was_exported(
    tiny: Path, tmp_path: Path, method: str
) -> None:
    FORMATS[method].write(place(tiny), plan_of(method), tmp_path)
    whole, found = base.read(tiny), base.read(tmp_path)
    assert {name: found.modules.get(name) for name in whole.modules} == whole.modules
    taken = measure(tmp_path, found, "float32", 8, 1).weights_bytes
    assert taken == pytest.approx((tmp_path / "model.safetensors").stat().st_size, rel=0.1)
    assert taken < measure(tiny, whole, "float32", 8, 1).weights_bytes / 1.8


def test_a_model_that_is_sharded_is_quantised_file_by_file(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sharded = tmp_path / "sharded"
    AutoTokenizer.from_pretrained(tiny).save_pretrained(sharded)
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(sharded, max_shard_size="60KB")
    folders = [tmp_path / name for name in ("one", "many")]
    for folder, source in zip(folders, (tiny, sharded), strict=True):
        folder.mkdir()
        export(place(source), plan_of("FP8"), folder)
    one, many = ({n: t for f in sorted(d.glob("*.safetensors")) for n, t in load_file(f).items()} for d in folders)
    assert len(list(folders[1].glob("*.safetensors"))) > 3
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name].float(), many[name].float()) for name in one)


def test_a_corrupted_scale_fails_the_check(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress = compressed.compress
    monkeypatch.setattr(
        compressed,
        "compress",
        lambda *given: {n: t * 2 if n == "weight_scale" else t for n, t in compress(*given).items()},
    )
    with pytest.raises(CheckFailed, match=r"logits in FP8 differ .* by \d.* more than spec.quantization.tolerance 0.2"):
        export(place(tiny), plan_of("FP8", 0.2), tmp_path)


def test_a_group_that_does_not_divide_a_layer_is_refused_with_one_that_does(tiny: Path, tmp_path: Path) -> None:
    plan = QuantizationPlan(method="W4A16", group_size=128, tolerance=1)
    with pytest.raises(
        ConfigError, match=r"groupSize 128: model.layers.0.self_attn.q_proj has \d+ features, .* (32|64) is"
    ):
        export(place(tiny), plan, tmp_path)


def test_the_example_merges_quantises_and_names_what_it_did(
    tiny: Path, tmp_path: Path, make_plan: Callable[..., TrainPlan]
) -> None:
    training = make_plan(run="one")
    adapter = artifact_path(training, train(training))
    example, _ = yaml.safe_load_all(EXAMPLE.read_text())
    spec = MergeJobSpec.model_validate(example["spec"])
    job = Job(namespace="test", name="m", uid="uid-m")
    plan = merge_plan(job, spec, {("FineTuneJob", "xiao-huang"): "pvc://store/a"}, "pvc://store")
    plan = plan.model_copy(
        update={
            "model": place(tiny),
            "adapters": [plan.adapters[0].model_copy(update={"path": str(adapter)})],
            "output": plan.output.model_copy(update={"path": str(tmp_path / "store")}),
        }
    )
    assert plan.quantization == quantization_plan(spec.quantization)  # type: ignore[arg-type]
    ending = merge(plan)
    assert ending.logit_error is not None
    assert ending.quantization_error is not None
    assert ending.logit_error < 1e-4 < ending.quantization_error < 0.2
    folder = artifact_path(plan, ending)
    assert json.loads((folder / "manifest.json").read_text())["quantization"]["method"] == "FP8"
    assert (
        json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    )
    assert (folder / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert [path.name for path in (tmp_path / "store" / "models").iterdir()] == [folder.name]  # no draft is left


def test_the_command_writes_a_whole_folder_or_none(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["export", str(tiny), "--out", str(out)]
    assert main([*command, "--method", "FP8", "--tolerance", "1e-9"]) == 67
    assert main([*command, "--method", "FP8", "--group-size", "32"]) == 64
    assert not list(tmp_path.iterdir())
    assert "groupSize is only for W4A16" in capsys.readouterr().err
    assert main([*command, "--method", "W8A8"]) == 0
    assert "logit error 0.0" in capsys.readouterr().out
    assert main([*command, "--method", "W8A8"]) == 64
    quantised = tmp_path / "again"
    shutil.copytree(out, quantised)
    assert main(["export", str(quantised), "--method", "FP8", "--out", str(tmp_path / "x")]) == 66
    assert "it is quantised (compressed-tensors)" in capsys.readouterr().err
