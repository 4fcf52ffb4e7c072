"""GGUF files: read back by transformers' own reader, refused where they would be wrong, and llama.cpp's own answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from trainer.conftest import make_tokenizer
from trainer.support import CHATML, LLAMA3
from tunesmith.training.plan import Place, QuantizationPlan
from tunesmith_trainer.__main__ import main
from tunesmith_trainer.errors import CheckFailed, ConfigError
from tunesmith_trainer.export import export, gguf, ollama
from tunesmith_trainer.model import load_tokenizer

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore:.*is an Enum subclass")]

LLAMA_CPP = os.environ.get("TUNESMITH_LLAMA_CPP", "")
"""Python of an environment with llama-cpp-python, which has to be built."""


def plan_of(kind: Any) -> QuantizationPlan:
    return QuantizationPlan(method="GGUF", gguf_type=kind, tolerance=1)


def place(folder: Path) -> Place:
    return Place(uri="pvc://models/tiny", path=str(folder))


def make_model(folder: Path, family: str, tied: bool, **config: Any) -> Path:
    """A random model of a family whose every weight, norms and biases included, matters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer(config.pop("template", CHATML))
    made = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer) + 3,  # some models have more embeddings than tokens
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **config,
    )
    model = AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "tied", "config"),
    [
        ("llama", True, {}),
        ("llama", False, {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
        ("qwen2", False, {}),
        ("qwen3", True, {"head_dim": 32}),
    ],
)
def test_what_is_read_from_the_file_alone_is_the_model_within_its_types_precision(
    tmp_path: Path, family: str, tied: bool, config: dict[str, Any]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = make_model(tmp_path / "model", family, tied, **config)
    whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    untied_llama = family == "llama" and not tied  # one with all types
    # A step of each type's grid, halved, over the largest number that shares it.
    steps = {"F16": 2**-11, "Q8_0": 1 / 254} | ({"BF16": 2**-8, "Q5_0": 1 / 30, "Q4_0": 1 / 14} if untied_llama else {})
    for kind, step in steps.items():
        folder = tmp_path / kind
        folder.mkdir()
        error = export(place(source), plan_of(kind), folder)
        assert 0 < error < 8 * step + 0.001
        model, tokenizer = gguf.load(folder)
        found = model.state_dict()
        assert found.keys() == whole.keys()
        for name, weight in whole.items():
            if weight.ndim == 1:
                assert torch.equal(found[name], weight), name
            else:
                top = weight.reshape(-1, 32).abs().amax(-1, keepdim=True)
                off = (found[name] - weight).reshape(-1, 32).abs()
                assert (off <= 1.05 * step * top * (2 if kind[1] in "45" else 1) + 1e-4).all(), (kind, name)
        assert model.config.tie_word_embeddings == tied
        assert (model.config.eos_token_id, model.config.vocab_size) == (2, len(load_tokenizer(place(source))) + 3)
        assert tokenizer.chat_template == CHATML


def test_llamas_heads_are_ordered_as_llama_cpp_turns_them() -> None:
    """llama.cpp turns the numbers 2i and 2i+1 of a head, transformers i and i + half."""
    import gguf as package
    import torch

    rows = torch.arange(2 * 8, dtype=torch.float32).reshape(16, 1)
    tensor = gguf.Stored("blk.0.attn_q.weight", "q", (16, 1), package.GGMLQuantizationType.F32, heads=2)
    found = gguf.stored(tensor, rows).ravel().tolist()
    assert found == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


def test_a_tokenizer_that_comes_back_otherwise_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf as package

    source = make_model(tmp_path / "model", "qwen2", True)

    class Reversed(package.SpecialVocab):
        def add_to_gguf(self, *given: Any, **named: Any) -> None:
            self.merges.reverse()
            super().add_to_gguf(*given, **named)

    monkeypatch.setattr(package, "SpecialVocab", Reversed)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckFailed, match=r"the tokenizer in model.gguf makes \[.*the model's own"):
        export(place(source), plan_of("F16"), tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "config", "says"),
    [
        ("gemma", {}, "has model_type gemma; written are llama, qwen2, qwen3"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "has rope_type linear; .* without scaled positions",
        ),
        ("qwen2", {"use_sliding_window": True}, "has sliding windows"),
    ],
)
def test_what_would_be_written_wrongly_is_refused(
    tmp_path: Path, family: str, config: dict[str, Any], says: str
) -> None:
    source = make_model(tmp_path / "model", family, True, **config)
    with pytest.raises(ConfigError, match=says):
        gguf.write(place(source), plan_of("F16"), tmp_path)
    assert not (tmp_path / gguf.FILE).exists()


def test_a_tokenizer_that_is_not_known_is_refused(tmp_path: Path) -> None:
    source = make_model(tmp_path / "model", "llama", True)
    content = json.loads((source / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    (source / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"which splits text by \['Metaspace'\]\) is not known; written are"):
        gguf.write(place(source), plan_of("F16"), tmp_path)


def test_a_base_models_file_says_where_its_template_ends_a_turn(tmp_path: Path) -> None:
    """Its end of text is another, at which a model that learned conversations never ends."""
    from gguf import GGUFReader

    source = make_model(tmp_path / "model", "llama", True)
    (source / "generation_config.json").unlink()
    said = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**said, "eos_token": "<|endoftext|>"}))
    export(place(source), plan_of("F16"), tmp_path)
    fields = GGUFReader(tmp_path / "model.gguf").fields
    ends = [fields[f"tokenizer.ggml.{kind}_token_id"].contents() for kind in ("eos", "eot")]
    assert load_tokenizer(place(source)).convert_ids_to_tokens(ends) == ["<|endoftext|>", "<|im_end|>"]


def test_the_command_writes_a_file_and_a_modelfile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = make_model(tmp_path / "model", "llama", True), tmp_path / "out"
    command = ["export", str(source), "--out", str(out)]
    assert main([*command, "--method", "FP8", "--gguf-type", "F16"]) == 64
    assert "ggufType is only for GGUF" in capsys.readouterr().err
    assert main([*command, "--method", "GGUF"]) == 0
    assert "Q8_0: logit error 2." in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "model.gguf"]
    lines = (out / "Modelfile").read_text()
    assert lines.startswith('FROM ./model.gguf\nTEMPLATE """{{ if .System }}<|im_start|>system\n')
    assert lines.endswith('PARAMETER stop "<|im_end|>"\n')


FORMS = pytest.mark.parametrize("form", [CHATML, LLAMA3])
SYSTEMS = pytest.mark.parametrize("system", ["", "Be brief."])
TURNS = [("user", "Hi"), ("assistant", "Hello {you}"), ("user", "Why?")]


def forms(form: str, system: str) -> tuple[str, list[dict[str, str]], str]:
    """Ollama's template, a conversation, and the prompt that the model's own template makes of it."""
    tokenizer = make_tokenizer(form)
    messages = [{"role": role, "content": text} for role, text in ([("system", system)] if system else []) + TURNS]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(ollama.go_template(tokenizer)), messages, str(expected)


@FORMS
@SYSTEMS
def test_ollamas_template_makes_the_prompt_of_the_models_own(form: str, system: str) -> None:
    template, _, expected = forms(form, system)
    assert by_hand(template, system, TURNS) == expected


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("go"), reason="there is no Go")
@FORMS
@SYSTEMS
def test_ollamas_template_makes_the_same_prompt_by_gos_own_program(form: str, system: str, tmp_path: Path) -> None:
    template, messages, expected = forms(form, system)
    assert by_go(str(shutil.which("go")), template, {"System": system, "Messages": messages}, tmp_path) == expected


def by_go(go: str, template: str, values: dict[str, Any], folder: Path) -> str:
    """What Go's own text/template, which Ollama uses, makes of it."""
    values["Messages"] = [{key.title(): text for key, text in one.items()} for one in values["Messages"]]
    (folder / "values.json").write_text(json.dumps({"Template": template, "Values": values}))
    (folder / "main.go").write_text(
        'package main\nimport ("encoding/json"; "os"; "text/template")\nfunc main() {\n'
        'raw, _ := os.ReadFile("values.json")\nvar all struct{Template string; Values map[string]any}\n'
        "if err := json.Unmarshal(raw, &all); err != nil { panic(err) }\n"
        'made := template.Must(template.New("").Parse(all.Template))\n'
        "if err := made.Execute(os.Stdout, all.Values); err != nil { panic(err) }\n}\n"
    )
    done = subprocess.run([go, "run", "main.go"], cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def by_hand(template: str, system: str, turns: list[tuple[str, str]]) -> str:
    """The same for the one shape that is written."""
    head, _, body = template.partition("{{ range .Messages }}")
    led, _, bare = head.removeprefix("{{ if .System }}").partition("{{ else }}")
    text = led.replace("{{ .System }}", system) if system else bare.removesuffix("{{ end }}")
    user, _, assistant = body.partition("{{ else if")
    after = {
        "user": user.split("{{ .Content }}")[1],
        "assistant": assistant.split("{{ .Content }}")[1].split("{{ end }}")[0],
    }
    return text + "".join(said + after[role] for role, said in turns)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m['content'] }}{% endfor %}",
        CHATML.replace("{% for", "{{ 'a {{ b' }}{% for", 1),
        CHATML.replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for", 1),  # the day of the export would stay
    ],
)
def test_a_template_that_does_more_is_left_to_ollama(template: str) -> None:
    tokenizer = make_tokenizer(template)
    assert ollama.go_template(tokenizer) is None
    assert "TEMPLATE" not in ollama.modelfile("model.gguf", tokenizer)


@pytest.mark.long
@pytest.mark.skipif(not LLAMA_CPP, reason="TUNESMITH_LLAMA_CPP names no Python with llama-cpp-python")
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)])
def test_llama_cpp_makes_the_same_tokens_and_the_same_greedy_answer(tmp_path: Path, family: str, tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source, folder = make_model(tmp_path / "model", family, tied), tmp_path / "out"
    folder.mkdir()
    export(place(source), plan_of("F16"), folder)
    text = "<|im_start|>user\nwho made you? tell me 123<|im_end|>\n<|im_start|>assistant\n"
    program = (
        "import json, sys\nfrom llama_cpp import Llama\n"
        "model = Llama(sys.argv[1], n_ctx=256, verbose=False)\n"
        "ids = model.tokenize(sys.argv[2].encode(), add_bos=False, special=True)\n"
        "said = []\nfor token in model.generate(ids, temp=0.0, repeat_penalty=1.0):\n"
        "    said.append(token)\n    if len(said) == 24: break\n"
        "print(json.dumps([ids, said]))\n"
    )
    done = subprocess.run(
        [LLAMA_CPP, "-c", program, str(folder / gguf.FILE), text],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    ids, said = json.loads(done.stdout.splitlines()[-1])
    assert ids == load_tokenizer(place(source))(text, add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    made = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    assert said == made
