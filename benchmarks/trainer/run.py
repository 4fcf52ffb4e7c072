"""Our trainer beside ms-swift's, in one run on this machine: the same random model, rows and steps. Rounds alternate,
so that what else the machine does meets both. Prints a table, and JSON with `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROWS, MICRO, LENGTH, WARM = 16, 4, 512, 2
"""Rows in all, which are one optimizer step, so that no order of rows matters; of a micro-batch; tokens at most; steps
that are not timed."""
RATES = {"Full": 1e-3, "LoRA": 1e-2}
LORA = {"lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0, "target_modules": "all-linear"}
TEMPLATE = Path(__file__).with_name("template.py")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As template.py has it for ms-swift: what is learned ends with <|im_end|>."""


@dataclass
class Run:
    """What one program did with one tuner."""

    losses: list[float]
    seconds: float
    """Of a step: from the log line of step WARM to that of the last, by this process's clock."""
    total: float
    """From its start to its end."""


def text(draw: random.Random, words: int) -> str:
    """Words of two to four syllables."""
    syllables = ["ka", "lo", "mi", "ru", "sen", "ta", "vo", "ne", "pi", "dra"]
    return " ".join("".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(words))


def prepare(folder: Path, hidden: int, layers: int) -> int:
    """Write a random model with its tokenizer, and rows of several lengths; the number of tokens of them all."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    draw = random.Random(0)
    rows = [
        {"query": text(draw, draw.randint(5, 40)), "response": text(draw, draw.randint(5, 80))} for _ in range(ROWS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text(draw, 20_000)],
        trainers.BpeTrainer(vocab_size=4096, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": special[1:2]})
    fast.chat_template = CHATML
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(fast), hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    fast.save_pretrained(folder / "model")
    turns = [[{"role": "user", "content": r["query"]}, {"role": "assistant", "content": r["response"]}] for r in rows]
    return sum(len(fast.apply_chat_template(one)["input_ids"]) for one in turns)


def ours(folder: Path, tuner: str, steps: int) -> tuple[list[str], str]:
    """(command, pattern of the log) of our trainer."""
    adapter = {"rank": 8, "alpha": 32, "dropout": 0.0} if tuner == "LoRA" else {}
    spec = {
        "model": {"uri": "./model"},
        "datasets": [{"uri": "./rows.jsonl"}],
        "method": {"type": "SFT"},
        "tuner": {"type": tuner, **adapter},
        "training": {
            "maxSteps": steps, "learningRate": RATES[tuner], "globalBatchSize": ROWS, "microBatchSize": MICRO,
            "maxLength": LENGTH, "scheduler": "Constant", "warmupRatio": 0, "weightDecay": 0, "dtype": "Float32",
            "gradientCheckpointing": "Disabled", "loggingSteps": 1,
        },
        "checkpoint": {"everySteps": 10 * steps},
    }  # fmt: skip
    job = {
        "apiVersion": "tunesmith.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": tuner.lower()},
        "spec": spec,
    }
    (folder / f"{tuner}.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "tunesmith_trainer", "run", str(folder / f"{tuner}.json"), "--from-scratch"]
    return [*command, "--claims", str(folder / "ours")], "ours/**/logging.jsonl"


def swift(folder: Path, tuner: str, steps: int, python: str) -> tuple[list[str], str]:
    """The same of ms-swift; what is not given is its default."""
    values = {
        "model": folder / "model", "model_type": "qwen2", "template": "chatml_row", "external_plugins": TEMPLATE,
        "dataset": folder / "rows.jsonl",
        "tuner_type": tuner.lower(), "max_steps": steps, "learning_rate": RATES[tuner], "lr_scheduler_type": "constant",
        "per_device_train_batch_size": MICRO, "gradient_accumulation_steps": ROWS // MICRO, "max_length": LENGTH,
        "warmup_ratio": 0, "weight_decay": 0, "adam_beta2": 0.999, "torch_dtype": "float32", "logging_steps": 1,
        "gradient_checkpointing": "false", "save_strategy": "no", "report_to": "none", "dataloader_num_workers": 0,
        "output_dir": folder / "swift", "seed": 42, "use_hf": "true",
        **(LORA if tuner == "LoRA" else {}),
    }  # fmt: skip
    arguments = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return [str(Path(python).with_name("swift")), "sft", *arguments], "swift/**/logging.jsonl"


def lines(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The lines so far of the only log that there is, of steps."""
    found = [
        json.loads(one) for path in folder.glob(pattern) for one in path.read_text().splitlines() if one[-1:] == "}"
    ]
    return [line for line in found if "loss" in line]


def follow(folder: Path, command: list[str], pattern: str, steps: int, threads: int, output: Path) -> Run:
    """Run a program, and note when each line of its log comes."""
    environment = {
        "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
        "TUNESMITH_PROGRESS_PORT": "0", "MODELSCOPE_CACHE": str(folder / "cache"), "MPLBACKEND": "Agg",
    }  # fmt: skip
    began, times = time.monotonic(), []
    with output.open("w") as out:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=out, stderr=subprocess.STDOUT, cwd=folder
        )
        while process.poll() is None:
            times += [time.monotonic()] * (len(lines(folder, pattern)) - len(times))
            time.sleep(0.005)
    made = lines(folder, pattern)
    if process.returncode or len(made) != steps or len(times) < steps:
        raise SystemExit(f"{' '.join(command)}: {process.returncode}, {len(made)} steps\n{output.read_text()[-4000:]}")
    return Run(
        [float(line["loss"]) for line in made], (times[-1] - times[WARM - 1]) / (steps - WARM), time.monotonic() - began
    )


def main() -> None:
    """Rounds of both programs with both tuners."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swift", required=True, help="python of an environment with ms-swift")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of each program")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, dict[str, list[Run]]] = {tuner: {"tunesmith": [], "ms-swift": []} for tuner in RATES}
    for number in range(given.rounds):
        for tuner, runs in found.items():
            programs = list(runs)
            for name in programs if number % 2 == 0 else programs[::-1]:
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary)
                    tokens = prepare(folder, given.hidden, given.layers)
                    command, pattern = (
                        ours(folder, tuner, given.steps)
                        if name == "tunesmith"
                        else swift(folder, tuner, given.steps, given.swift)
                    )
                    run = follow(folder, command, pattern, given.steps, given.threads, folder / "output")
                runs[name].append(run)
                print(f"round {number + 1}  {tuner}  {name}  {tokens / run.seconds:.0f} tokens/s", flush=True)
    table = []
    for tuner, runs in found.items():
        first, second = [runs[name][0].losses for name in ("tunesmith", "ms-swift")]
        ratios = [theirs.seconds / own.seconds for own, theirs in zip(*runs.values(), strict=True)]
        table.append(
            {
                "tuner": tuner,
                "loss, first and last": [first[0], first[-1], second[0], second[-1]],
                "largest difference of losses": max(abs(a / b - 1) for a, b in zip(first, second, strict=True)),
                "tokens/s": {n: round(tokens / statistics.median(r.seconds for r in rs)) for n, rs in runs.items()},
                "ratios": [round(one, 3) for one in ratios],
                "ratio": round(statistics.median(ratios), 3),
                "whole run": {n: round(statistics.median(r.total for r in rs), 1) for n, rs in runs.items()},
            }
        )
    libraries = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    said = {
        "cpus": os.cpu_count(), "threads": given.threads, "hidden": given.hidden, "layers": given.layers,
        "python": platform.python_version(), "tunesmith": libraries, "steps": given.steps,
        "rounds": given.rounds, "tokens of a step": tokens, "load": os.getloadavg(), "table": table,
        "runs": {t: {n: [asdict(r) for r in rs] for n, rs in runs.items()} for t, runs in found.items()},
    }  # fmt: skip
    print(json.dumps({k: v for k, v in said.items() if k != "runs"}, indent=1))
    if given.out:
        given.out.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
