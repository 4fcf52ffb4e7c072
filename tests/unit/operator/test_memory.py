"""Sizes of published models, and what training them takes: against published numbers, and by what must hold."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tunesmith.training import architecture
from tunesmith.training.architecture import ModelFacts
from tunesmith.training.estimating import estimate
from tunesmith.training.memory import choose
from tunesmith.training.plan import DistributionPlan, MethodPlan, TrainPlan

GIB = 2**30
GB = 10**9


def config(kind: str, hidden: int, inner: int, layers: int, heads: int, keys: int, words: int, **more: Any) -> Any:
    return {
        "model_type": kind, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": keys, "vocab_size": words, **more,
    }  # fmt: skip


TIED, OWN = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
QWEN_7B = config("qwen2", 3584, 18944, 28, 28, 4, 152064, **OWN)
LLAMA_7B = config("llama", 4096, 11008, 32, 32, 32, 32000, **OWN)
LLAMA_13B = config("llama", 5120, 13824, 40, 40, 40, 32000, **OWN)
LLAMA_65B = config("llama", 8192, 22016, 80, 64, 64, 32000, **OWN)
LLAMA_70B = config("llama", 8192, 28672, 80, 64, 8, 32000, **OWN)
MIXTRAL = config("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2)
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
    "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
GEMMA3_4B = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34
    },
    "vision_config": SIGLIP,
}  # fmt: skip

# As their model cards and files say.
PUBLISHED = {
    "SmolLM2-135M": (config("llama", 576, 1536, 30, 9, 3, 49152, **TIED), 134_515_008),
    "SmolLM3-3B": (config("smollm3", 2048, 11008, 36, 16, 4, 128256), 3_075_098_624),
    "Llama-2-7B": (LLAMA_7B, 6_738_415_616),
    "Llama-3.1-8B": (config("llama", 4096, 14336, 32, 32, 8, 128256, **OWN), 8_030_261_248),
    "Llama-2-70B": (LLAMA_70B, 68_976_648_192),
    "Qwen2.5-0.5B": (config("qwen2", 896, 4864, 24, 14, 2, 151936, **TIED), 494_032_768),
    "Qwen2.5-7B": (QWEN_7B, 7_615_616_512),
    "Qwen3-0.6B": (config("qwen3", 1024, 3072, 28, 16, 8, 151936, head_dim=128, **TIED), 596_049_920),
    "Qwen3-8B": (config("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128, **OWN), 8_190_735_360),
    "Mistral-7B-v0.1": (config("mistral", 4096, 14336, 32, 32, 8, 32000), 7_241_732_096),
    "gemma-2b": (config("gemma", 2048, 16384, 18, 8, 1, 256000, head_dim=256), 2_506_172_416),
    "gemma-2-2b": (config("gemma2", 2304, 9216, 26, 8, 4, 256000, head_dim=256), 2_614_341_888),
    "gemma-3-1b": (config("gemma3_text", 1152, 6912, 26, 4, 1, 262144, head_dim=256), 999_885_952),
    "gemma-3-4b": (GEMMA3_4B, 4_300_079_472),
    "phi-2": (config("phi", 2560, 10240, 32, 32, 32, 51200, **OWN), 2_779_683_840),
    "Phi-3-mini": (config("phi3", 3072, 8192, 32, 32, 32, 32064, **OWN), 3_821_079_552),
    "Mixtral-8x7B": (MIXTRAL, 46_702_792_704),
    "Qwen1.5-MoE-A2.7B": (
        config("qwen2_moe", 2048, 5632, 24, 16, 16, 151936, num_experts=60, num_experts_per_tok=4,
               moe_intermediate_size=1408, shared_expert_intermediate_size=5632, **OWN),
        14_315_784_192,
    ),
    "Qwen3-30B-A3B": (
        config("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, num_experts=128, num_experts_per_tok=8,
               moe_intermediate_size=768, **OWN),
        30_532_122_624,
    ),
}  # fmt: skip


def facts(values: dict[str, Any]) -> ModelFacts:
    found, reason = architecture.facts(values)
    assert found, reason
    return found


LORA = {"type": "LoRA", "rank": 8, "alpha": 32, "dropout": 0.05}
QLORA = {**LORA, "type": "QLoRA", "quantization": "NF4"}
INT8 = {**QLORA, "quantization": "Int8"}
FULL = {"type": "Full"}


def plan(tuner: dict[str, Any] = LORA, nodes: int = 1, processes: int = 1, **training: Any) -> TrainPlan:
    values = {
        "epochs": 1, "learning_rate": 1e-4, "global_batch_size": 64, "micro_batch_size": 1,
        "gradient_accumulation_steps": 64, "max_length": 2048, "packing": False, "scheduler": "Cosine",
        "warmup_ratio": 0, "weight_decay": 0, "max_grad_norm": 1, "gradient_checkpointing": True, "dtype": "Auto",
        "seed": 1, "logging_steps": 1,
    } | training  # fmt: skip
    return TrainPlan.model_validate(
        {
            "job": {"namespace": "ns", "name": "x", "uid": "u"},
            "model": {"uri": "hf://org/model", "path": "/model"},
            "datasets": [],
            "method": {"type": "SFT"},
            "tuner": tuner,
            "training": values,
            "nodes": nodes,
            "processes_per_node": processes,
            "checkpoint": {"uri": "pvc://store", "path": "/store", "every_steps": 1},
            "output": {"uri": "pvc://store", "path": "/store", "run": "/store/run"},
        }
    )


def method(made: TrainPlan, **values: Any) -> TrainPlan:
    return made.model_copy(update={"method": MethodPlan.model_validate(values)})


DDP = DistributionPlan()
FSDP = DistributionPlan(strategy="FSDP2")


def zero(stage: int, offload: str = "None") -> DistributionPlan:
    return DistributionPlan.model_validate({"strategy": f"ZeRO{stage}", "offload": offload})


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_follow_exactly_from_the_configuration(name):
    values, parameters = PUBLISHED[name]
    found = facts(values)
    assert found.parameters == parameters
    assert len(found.model_dump_json(by_alias=True)) < 1000


def test_parts_of_a_dense_model():
    found = facts(QWEN_7B)
    assert found.embeddings == found.head == 152064 * 3584
    assert found.linears["down_proj"] == (28 * 18944 * 3584, 28 * (18944 + 3584))
    assert found.linear == 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert found.layer == 233_057_792
    assert (found.head_dim, found.experts, found.vision, found.exact) == (128, 0, 0, False)


def test_experts_are_no_linear_modules_and_tokens_pass_few_of_them():
    found = facts(MIXTRAL)
    assert found.experts == 32 * 8 * 3 * 4096 * 14336
    assert found.layer == 1_451_270_144
    assert set(found.linears) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert found.experts_sides == 32 * (8 * (2 * (4096 + 2 * 14336) + 4096 + 14336) + 4096 + 8)
    assert (found.expert_count, found.experts_per_token, found.intermediate) == (8, 2, 2 * 14336)


def test_an_encoder_of_images_is_told_apart():
    found = facts(GEMMA3_4B)
    assert found.vision == 4_300_079_472 - 3_880_263_168
    assert (found.hidden, found.heads, found.vocabulary) == (2560, 8, 262_208)


HEADERS = [
    ("transformer.wte.weight", (1000, 64)),
    ("transformer.h.0.attn.c_attn.weight", (64, 192)),
    ("transformer.h.0.ln_1.weight", (64,)),
    ("transformer.h.0.attn.bias", (1, 1, 128, 128)),
    ("transformer.h.1.attn.c_attn.weight", (64, 192)),
    ("transformer.h.1.mlp.experts.0.up.weight", (256, 64)),
    ("transformer.h.1.mlp.gate.weight", (4, 64)),
    ("visual.blocks.0.qkv.weight", (96, 32)),
]


def test_headers_are_enough_for_any_architecture():
    found, _ = architecture.facts({"model_type": "strange", "n_embd": 64, "n_head": 4}, HEADERS)
    assert found
    assert found.parameters == 64_000 + 2 * 64 * 192 + 64 + 256 * 64 + 4 * 64 + 96 * 32
    assert (found.embeddings, found.vision, found.experts) == (64_000, 96 * 32, 256 * 64)
    assert found.linears == {"c_attn": (2 * 64 * 192, 2 * 256), "qkv": (96 * 32, 128)}
    assert (found.layers, found.hidden, found.vocabulary, found.tied, found.exact) == (2, 64, 1000, True, True)


def test_a_head_that_is_stored_though_it_is_tied_counts_once():
    stored = [("model.embed_tokens.weight", (100, 8)), ("lm_head.weight", (100, 8))]
    counts = []
    for tied in (True, False):
        values = config("llama", 8, 16, 1, 1, 1, 100, tie_word_embeddings=tied)
        found, _ = architecture.facts(values, stored)
        assert found
        counts.append((found.parameters, found.head))
    assert counts == [(800, 0), (1600, 800)]


def test_many_kinds_of_modules_stay_small():
    many = [(f"model.layers.0.module{i}.weight", (64, 64 + i)) for i in range(200)]
    found, _ = architecture.facts({"model_type": "strange", "hidden_size": 64}, many)
    assert found
    assert len(found.model_dump_json(by_alias=True)) < 3000
    assert found.linear == sum(a * b for _, (a, b) in many)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "strange"}, "model_type 'strange', whose sizes are known from the headers"),
        ({"model_type": "llama", "hidden_size": 8}, "lacks what .*num_hidden_layers"),
        ({"model_type": "qwen2_vl", "text_config": {"model_type": "qwen2"}, "vision_config": {}}, "encoder's sizes"),
        ({}, "model_type None"),
    ],
)
def test_what_is_not_known_is_said(values, reason):
    found, why = architecture.facts(values)
    assert found is None
    assert re.search(reason, why), why


# --- estimates -------------------------------------------------------------------------------------------------------


def test_full_training_takes_16_bytes_a_parameter():
    """Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3.1."""
    needs = estimate(plan(FULL), facts(LLAMA_7B), DDP)
    assert needs.weights + needs.gradients + needs.optimizer == 16 * 6_738_415_616


@pytest.mark.parametrize(
    ("distribution", "size"), [(DDP, 120), (zero(1), 31.4), (zero(2), 16.6), (zero(3), 1.9)], ids=str
)
def test_zero_takes_what_its_paper_says(distribution, size):
    """Figure 1 of arXiv 1910.02054: GB of model states of 7.5 billion parameters on 64 devices."""
    billions = facts(LLAMA_7B).model_copy(update={"parameters": 7_500_000_000})
    needs = estimate(plan(FULL, nodes=8, processes=8), billions, distribution)
    assert (needs.weights + needs.gradients + needs.optimizer) / GB == pytest.approx(size, abs=0.05)


def test_fsdp_shares_out_all_that_is_held():
    """16 bytes a parameter (float32 weights, gradients and two moments), by the number of processes."""
    needs = estimate(plan(FULL, nodes=8, processes=8), facts(LLAMA_7B), FSDP)
    assert needs.weights + needs.gradients + needs.optimizer == pytest.approx(16 * 6_738_415_616 / 64, rel=1e-6)
    assert needs.overhead > 2 * 2 * facts(LLAMA_7B).layer


@pytest.mark.parametrize(("size", "count"), [(8, 8), (2, 8), (8, 16)])
def test_tensor_parallel_processes_hold_their_part_of_each_matrix(size, count):
    """16 bytes a parameter; what is no matrix is held by all of a group, and shared out by several groups."""
    found, spread = facts(LLAMA_7B), DistributionPlan(strategy="FSDP2", tensor_parallel=size)
    needs = estimate(plan(FULL, processes=count).model_copy(update={"distribution": spread}), found, spread)
    held = (found.linear / size + found.parameters - found.linear) / (count // size)
    assert needs.weights + needs.gradients + needs.optimizer == pytest.approx(16 * held, rel=1e-6)


def test_processes_that_share_rows_take_the_activations_of_shorter_ones():
    found, values = facts(QWEN_7B), {"gradient_checkpointing": False}
    spread = DistributionPlan(sequence_parallel=4)
    shared = estimate(plan(LORA, processes=4, max_length=8192, **values), found, spread)
    assert shared == estimate(plan(LORA, processes=4, max_length=2048, **values), found, DDP)


def test_layers_over_several_devices_take_a_part_of_each():
    found = facts(LLAMA_70B)
    alone = estimate(plan(LORA), found, DDP)
    spread = estimate(plan(LORA), found, DistributionPlan(strategy="DeviceMap", devices=4))
    assert alone.weights / 4 < spread.weights < alone.weights / 4 + 2.1 * found.layer
    assert spread.gradients + spread.optimizer < alone.gradients + alone.optimizer


# Model, tuner, training, GB and the part by which an estimate may differ. See docs/memory.md for the sources.
FIGURES = {
    "LLaMA-Factory, Full (AMP), 7B": (LLAMA_7B, FULL, {}, 120, 0.2),
    "LLaMA-Factory, Full (AMP), 13B": (LLAMA_13B, FULL, {}, 240, 0.2),
    "LLaMA-Factory, LoRA, 7B": (LLAMA_7B, LORA, {}, 16, 0.2),
    "LLaMA-Factory, LoRA, 13B": (LLAMA_13B, LORA, {}, 32, 0.2),
    "LLaMA-Factory, LoRA, 70B": (LLAMA_70B, LORA, {}, 160, 0.2),
    "LLaMA-Factory, QLoRA 8 bit, 7B": (LLAMA_7B, INT8, {}, 10, 0.2),
    "LLaMA-Factory, QLoRA 8 bit, 70B": (LLAMA_70B, INT8, {}, 80, 0.2),
    "LLaMA-Factory, QLoRA 4 bit, 7B": (LLAMA_7B, QLORA, {}, 6, 0.2),
    "LLaMA-Factory, QLoRA 4 bit, 13B": (LLAMA_13B, QLORA, {}, 12, 0.2),
    "LLaMA-Factory, QLoRA 4 bit, 70B": (LLAMA_70B, QLORA, {}, 48, 0.2),
}


@pytest.mark.parametrize("name", FIGURES)
def test_estimates_are_near_published_figures(name):
    values, tuner, training, size, part = FIGURES[name]
    needs = estimate(plan(tuner, **{"max_length": 1024, **training}), facts(values), DDP)
    print(name, size, round(needs.total / GB, 1))
    assert needs.total / GB == pytest.approx(size, rel=part)


def test_qlora_trains_65b_on_48_gb():
    """Dettmers et al., QLoRA, arXiv 2305.14314: 65B on one GPU of 48 GB, which takes more than 780 GB in 16 bit."""
    found, tuner = facts(LLAMA_65B), {**QLORA, "rank": 16}
    assert estimate(plan(tuner, max_length=512), found, DDP).total < 48 * GB
    assert estimate(plan(FULL, max_length=512), found, DDP).total > 780 * GB


def test_each_lever_takes_less():
    found = facts(QWEN_7B)
    heavy = {"micro_batch_size": 4, "gradient_checkpointing": False}
    before = estimate(plan(**heavy), found, DDP).total
    for change in ({"micro_batch_size": 2}, {"gradient_checkpointing": True}, {"max_length": 1024}):
        assert estimate(plan(**{**heavy, **change}), found, DDP).total < before
    totals = [estimate(plan(t), found, DDP).total for t in (FULL, LORA, INT8, QLORA)]
    assert totals == sorted(totals, reverse=True)
    eight = plan(FULL, processes=8)
    assert estimate(eight, found, FSDP).total < estimate(eight, found, zero(2)).total
    spread = (DDP, zero(1), zero(2), zero(3), zero(3, "Optimizer"), zero(3, "All"))
    totals = [estimate(eight, found, one).total for one in spread]
    assert totals == sorted(totals, reverse=True)
    assert estimate(eight, found, zero(3, "All")).host > 16 * found.parameters


def test_a_mask_grows_with_the_square_of_the_length():
    found = facts(QWEN_7B)
    alone, packed = (estimate(plan(max_length=32_768, packing=p), found, DDP).activations for p in (False, True))
    assert packed - alone == 32_768**2 * 3


def test_targets_decide_how_much_is_trained():
    found = facts(QWEN_7B)
    some = estimate(plan({**LORA, "target_modules": ["self_attn.q_proj", "v_proj"]}), found, DDP)
    assert some.gradients == 4 * 8 * 28 * (3584 + 3584 + 3584 + 512)


def test_adapters_of_experts_copy_them():
    found = facts(MIXTRAL)
    some, all_of_them = (
        estimate(plan({**LORA, "target_modules": targets}, dtype="Float32"), found, DDP)
        for targets in (sorted(found.linears), [])
    )
    assert all_of_them.gradients - some.gradients == 4 * 8 * found.experts_sides
    assert all_of_them.activations - some.activations == 4 * 2 * found.experts // 32


# --- choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tuner", "processes", "device", "strategy"),
    [
        (LORA, 8, 80, "DDP"),
        (LORA, 1, 24, "DDP"),
        (FULL, 8, 80, "ZeRO2"),
        (FULL, 8, 40, "ZeRO2"),
        (FULL, 8, 32, "ZeRO3"),
        (FULL, 8, 24, "ZeRO3, offload Optimizer"),
        (FULL, 1, 80, "ZeRO3, offload Optimizer"),
        (FULL, 1, 16, "ZeRO3, offload All"),
        (QLORA, 8, 16, "DDP"),
        (FULL, 8, None, "DDP"),
    ],
)
def test_auto_is_the_first_that_fits(tuner, processes, device, strategy):
    made = choose(plan(tuner, processes=processes), facts(QWEN_7B), "Auto", "None", device and device * GIB)
    assert made.status.strategy == strategy, made.status.summary
    assert made.fits is (None if device is None else True)
    assert made.status.available_bytes == (device and device * GIB)
    sizes = made.status
    assert sizes.total_bytes == (
        sizes.weights_bytes + sizes.gradients_bytes + sizes.optimizer_bytes + sizes.activations_bytes
        + sizes.overhead_bytes
    )  # fmt: skip
    assert sizes.summary.startswith(f"{strategy}: ")


def test_a_quantised_base_is_counted_as_it_is_held_and_no_advice_splits_it():
    whole = facts(PUBLISHED["Qwen2.5-7B"][0])
    turned_back = whole.model_copy(update={"quantized": True})
    packed = turned_back.model_copy(update={"packed": "NF4"})
    assert estimate(plan(), turned_back, DDP) == estimate(plan(), whole, DDP)
    assert estimate(plan(), packed, DDP) == estimate(plan(QLORA), whole, DDP)
    choice = choose(plan(processes=8), turned_back, "Auto", "None", 8 * GIB)
    assert (choice.distribution.strategy, choice.fits) == ("DDP", False)
    assert "ZeRO" not in choice.status.summary
    assert "QLoRA" not in choice.status.summary


def test_what_is_asked_for_is_kept():
    eight, found = plan(FULL, processes=8), facts(QWEN_7B)
    made = choose(eight, found, "DDP", "None", 80 * GIB)
    assert (made.distribution, made.fits) == (DDP, False)
    assert "distribution.strategy Auto (ZeRO2: " in made.status.summary
    assert choose(eight, found, "Auto", "Optimizer", 80 * GIB).distribution == zero(2, "Optimizer")
    assert choose(eight, found, "Auto", "All", 80 * GIB).distribution == zero(3, "All")


@pytest.mark.parametrize(
    ("made", "device", "words"),
    [
        (plan(FULL), 8, ["does not fit: ZeRO3, offload All needs", "which has 8.0", "tuner QLoRA (DDP: ", "GiB)"]),
        (
            plan(micro_batch_size=8, gradient_checkpointing=False),
            24,
            ["gradientCheckpointing Enabled (", "microBatchSize ", "maxLength ", "tuner QLoRA with"],
        ),
        (plan(QLORA, max_length=32_768), 10, ["Would fit: maxLength 4096 (DDP: "]),
        (plan(QLORA), 4, ["No single change suffices. Closest of what does not: ", "maxLength 256 (DDP: "]),
        (plan(FULL, processes=2), 4, ["tuner QLoRA with microBatchSize 1, maxLength 256 and gradientCheckpointing"]),
    ],
)
def test_what_does_not_fit_says_what_would(made, device, words):
    found = choose(made, facts(QWEN_7B), "Auto", "None", device * GIB)
    assert found.fits is False
    for word in words:
        assert word in found.status.summary
    assert found.status.summary.count(" GiB)") >= (2 if made.tuner.type == "QLoRA" else 3)
    assert len(found.status.summary) < 1500


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({"type": "KTO"}, r"microBatchSize 1\b"),
        (
            {"type": "GKD", "gkd": {"teacher": {"uri": "hf://org/t"}, "maxCompletionLength": 1500}},
            r"maxLength (1[0-5]|[1-9])?\d\d ",
        ),
    ],
)
def test_no_advice_is_below_what_the_method_needs(values, refused):
    made = plan(FULL, micro_batch_size=8, max_length=4096, gradient_checkpointing=False)
    made = method(made, **values)
    summary = choose(made, facts(QWEN_7B), "Auto", "None", 4 * GIB).status.summary
    assert "microBatchSize" in summary
    assert not re.search(refused, summary), summary


ELSEWHERE = {"spec.method.dpo.referenceModel": {"uri": "hf://org/r", "path": "/r"}}


@pytest.mark.parametrize(
    ("tuner", "values", "models"),
    [
        (FULL, {"type": "SFT"}, 0),
        (FULL, {"type": "KTO"}, 1),
        (LORA, {"type": "KTO"}, 0),  # the base below the adapters is the reference
        (LORA, {"type": "KTO", "models": ELSEWHERE}, 1),
        (FULL, {"type": "GRPO", "grpo": {"beta": 0.0, "rewards": [{"type": "Accuracy"}]}}, 0),
        (FULL, {"type": "GRPO", "grpo": {"beta": 0.1, "rewards": [{"type": "Accuracy"}]}}, 1),
        (LORA, {"type": "GKD", "gkd": {"teacher": {"uri": "hf://org/t"}}}, 1),
    ],
)
@pytest.mark.parametrize(("distribution", "parts"), [(DDP, 1), (FSDP, 8), (zero(2), 1), (zero(3), 8)])
def test_a_reference_or_teacher_is_held_beside_the_model(tuner, values, models, distribution, parts):
    """As the trainer loads it: in float32 for Full without ZeRO, else in the compute type; split where weights are."""
    made, found = plan(tuner, processes=8), facts(QWEN_7B)
    given = method(made, **values)
    width = 4 if tuner == FULL and not distribution.strategy.startswith("ZeRO") else 2
    more = estimate(given, found, distribution).weights - estimate(made, found, distribution).weights
    assert more == pytest.approx(models * found.parameters * width / parts, abs=1)


@pytest.mark.parametrize("name", ["DPO", "CPO", "SimPO", "ORPO", "RewardModel"])
def test_a_row_of_two_answers_takes_the_activations_of_two(name):
    found = facts(QWEN_7B)
    one, two = (estimate(plan(micro_batch_size=rows, max_length=8192), found, DDP).activations for rows in (1, 2))
    assert two > 1.5 * one
    assert estimate(method(plan(max_length=8192), type=name), found, DDP).activations == two


@pytest.mark.parametrize("other", ["tensorParallel", "GaLore"])
def test_no_tuner_is_advised_that_would_be_refused(other):
    made = plan(FULL, processes=2, optimizer="GaLore" if other == "GaLore" else "AdamW")
    if other == "tensorParallel":
        made = made.model_copy(update={"distribution": DistributionPlan(tensor_parallel=2)})
    found = choose(made, facts(QWEN_7B), "Auto", "None", 20 * GIB)
    assert found.fits is False
    assert "tuner" not in found.status.summary


def test_on_cpu_nothing_is_offloaded_and_all_is_float32():
    found = facts(PUBLISHED["SmolLM2-135M"][0])
    made = choose(plan(FULL), found, "Auto", "None", 2 * GIB, cpu=True)
    assert made.fits is False
    assert "per process" in made.status.summary
    assert "offload" not in made.status.summary
    assert made.status.weights_bytes == 4 * found.parameters


def test_facts_survive_their_json():
    found = facts(MIXTRAL)
    assert ModelFacts.model_validate_json(json.dumps(found.body())) == found
