"""An engine over two processes, as the pods of a LeaderWorkerSet run it: with the arguments that the operator renders,
on one machine, by vLLM's own multi-node backend over Gloo.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.conftest import ENGINE_START, MAX_RANK, METADATA, PROMPT, Forge, Process, call, free_port, tokens_of, until
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.children.groups import MASTER_PORT, leader_worker_set
from tunesmith.children.meta import Object, Owner
from tunesmith.children.pods import Input
from tunesmith.serving.contract import ENGINE_PORT, State
from tunesmith.settings import Settings

pytestmark = pytest.mark.trainer

SPEC = {
    "model": {"uri": "file:///model"},
    "engine": {
        "nodes": 2,
        "tensorParallel": 2,
        "dtype": "Float32",
        "maxModelLen": 512,
        "args": ["--enforce-eager"],
    },
    "modelCache": {"type": "Claim", "claim": {"name": "models"}},
}


def rendered(base: Path) -> tuple[Object, Object]:
    """(leader's, worker's) engine container."""
    body = {"apiVersion": "tunesmith.io/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "x"}, "spec": SPEC}
    state = State(
        revision=1, model_name="base", model_path=str(base), max_lora_rank=MAX_RANK, max_loras=2, max_cpu_loras=2
    )
    owner = Owner("ModelDeployment", "ns", "x", "uid")
    group = leader_worker_set(
        owner, ModelDeployment.model_validate(body).spec, state, Input(f"file://{base}"), None, Settings()
    )["spec"]["leaderWorkerTemplate"]
    [leader], [worker] = (group[f"{name}Template"]["spec"]["containers"] for name in ("leader", "worker"))
    return leader, worker


def process(container: Object, rank: int, ports: dict[int, int], root: Path) -> Process:
    """The container as a process of this machine."""
    given = {"LWS_LEADER_ADDRESS": "127.0.0.1", "LWS_WORKER_INDEX": str(rank)}
    command = [sys.executable, *container["command"][1:]]
    for argument in container["args"]:
        for name, value in given.items():
            argument = argument.replace(f"$({name})", value)
        for port, instead in ports.items():
            argument = argument.replace(f"port={port}", f"port={instead}")
        if "--middleware" not in argument:
            command.append(argument)
    environment = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    environment |= {
        "PATH": os.environ["PATH"],
        "HOME": str(root),
        "PYTHONPATH": str(root / "metadata"),
        "VLLM_CACHE_ROOT": str(root / "cache"),
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    return Process(command, environment, root / f"rank-{rank}.log")


class Group:
    def __init__(self, base: Path, root: Path) -> None:
        self.base, self.root = base, root
        (root / "metadata" / "vllm-0.32.0+cpu.dist-info").mkdir(parents=True)
        (root / "metadata" / "vllm-0.32.0+cpu.dist-info" / "METADATA").write_text(METADATA)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        ports = {ENGINE_PORT: port, MASTER_PORT: free_port()}
        leader, worker = rendered(base)
        self.leader, self.worker = process(leader, 0, ports, root), process(worker, 1, ports, root)

    def up(self) -> bool:
        for one in (self.leader, self.worker):
            assert one.child is not None
            assert one.child.poll() is None, one.log.read_text()[-3000:]
        return call("GET", f"{self.url}/health", timeout=5).status == 200

    def say(self, model: str) -> Any:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
        answer = call("POST", f"{self.url}/v1/completions", {**body, "return_token_ids": True}, timeout=60)
        return tokens_of(answer) if answer.status == 200 else answer

    def load(self, name: str, path: Path) -> Any:
        return call("POST", f"{self.url}/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})


@pytest.fixture(scope="module")
def group(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    found = Group(forge.base(), tmp_path_factory.mktemp("group"))
    try:
        found.leader.start()
        found.worker.start()
        until(found.up, ENGINE_START, "the group does not come up")
        yield found
    finally:
        found.leader.stop(signal.SIGKILL)
        found.worker.stop(signal.SIGKILL)


def test_layers_shared_by_two_nodes_answer_as_one_and_take_adapters_while_they_serve(group: Group, forge: Forge):
    first, second = forge.adapter(group.base, seed=81), forge.adapter(group.base, seed=82)
    assert group.say("base") == forge.say(group.base, None)
    assert group.load("first", first).status == 200
    assert group.load("second", second).status == 200
    for name, path in (("first", first), ("second", second), ("first", first)):
        assert group.say(name) == forge.say(group.base, path)
    assert call("POST", f"{group.url}/v1/unload_lora_adapter", {"lora_name": "second"}).status == 200
    assert group.say("second").status == 404


def test_a_worker_that_dies_takes_the_group_with_it(group: Group):
    """The leader does not answer any more, so that the group is made again as a whole."""
    assert group.worker.child is not None
    group.worker.stop(signal.SIGKILL)
    with socket.create_connection(("127.0.0.1", int(group.url.rsplit(":", 1)[1])), timeout=5):
        pass
    answer = call("POST", f"{group.url}/v1/completions", {"model": "base", "prompt": "x"}, timeout=20)
    print(f"\nwith a dead worker: {answer}; /health {call('GET', f'{group.url}/health', timeout=5)}")
    assert answer.status != 200
