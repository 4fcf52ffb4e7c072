"""A ModelDeployment whose engine is two pods: what the operator renders, as LeaderWorkerSet's controller runs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.harness import Kubectl, custom, eventually
from serving.conftest import ENGINE_START, PROMPT, Answer, Forge, call, tokens_of

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(1800), pytest.mark.usefixtures("operated", "store")]

NAME = "wide"
SET = f"{NAME}-engine"
LEADER, WORKER = f"{SET}-0", f"{SET}-0-1"
SHUTDOWN_SECONDS = 120
"""What a group that ends has for its last answers: one that is broken gives none."""
CLAIM = "tunesmith-store"
FIRST = {"name": "first", "uri": f"pvc://{CLAIM}/first"}
Pods = dict[str, dict[str, Any]]


def deployment(*adapters: dict[str, Any], length: int = 512) -> dict[str, Any]:
    spec = {
        "model": {"uri": f"pvc://{CLAIM}/base"},
        "adapters": list(adapters),
        "engine": {
            "nodes": 2,
            "tensorParallel": 2,
            "dtype": "Float32",
            "maxModelLen": length,
            "maxLoras": 2,
            "maxLoraRank": 16,
            "args": ["--enforce-eager", "--kv-cache-memory-bytes=268435456"],
            "shutdownTimeoutSeconds": SHUTDOWN_SECONDS,
        },
        "modelCache": {"type": "Claim", "claim": {"name": CLAIM}},
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "5Gi"}},
    }
    return custom("ModelDeployment", NAME, spec)


def pods(kubectl: Kubectl) -> Pods:
    """Those of the group, by name."""
    found = kubectl.list("pod")
    return {pod["metadata"]["name"]: pod for pod in found if pod["metadata"]["name"].startswith(SET)}


def uids(kubectl: Kubectl) -> dict[str, str]:
    return {name: pod["metadata"]["uid"] for name, pod in pods(kubectl).items()}


def renewed(kubectl: Kubectl, before: dict[str, str]) -> bool:
    """Whether the group is there, and none of the pods before."""
    now = uids(kubectl)
    return set(now) == set(before) and not set(now.values()) & set(before.values())


def words(kubectl: Kubectl) -> str:
    """What is to be seen of a group that does not come up."""
    logs = [
        kubectl("logs", f"pod/{name}", "-c", "engine", "--tail=40", *more, check=False)
        for name in (LEADER, WORKER)
        for more in ([], ["--previous"])
    ]
    return kubectl("describe", "mdep,lws,pods", check=False) + "\n---\n".join(logs)


def ready(kubectl: Kubectl) -> None:
    eventually(
        lambda: kubectl.condition("mdep", NAME, "Ready").get("reason") == "Ready", lambda: words(kubectl), ENGINE_START
    )


def served(kubectl: Kubectl, adapter: str = "first") -> None:
    eventually(
        lambda: [each["state"] for each in kubectl.get("mdep", NAME)["status"].get("adapters", [])] == ["Ready"],
        lambda: f"{adapter}: {kubectl.get('mdep', NAME)['status']}",
        ENGINE_START,
    )


def ask(kubectl: Kubectl, model: str) -> Callable[[], Answer]:
    """Asks for the greedy answer, by the deployment's Service."""
    url = f"http://{kubectl.get('service', NAME)['spec']['clusterIP']}/v1/completions"
    body = {"model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    return lambda: call("POST", url, {**body, "return_token_ids": True}, timeout=60)


def say(kubectl: Kubectl, model: str) -> tuple[int, ...]:
    answer = ask(kubectl, model)()
    assert answer.status == 200, answer
    return tokens_of(answer)


@contextmanager
def asking(kubectl: Kubectl, model: str) -> Iterator[list[Answer]]:
    """One question after the other."""
    question, answers, stop = ask(kubectl, model), list[Answer](), threading.Event()

    def go_on() -> None:
        while not stop.wait(0.5):
            answers.append(question())

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def test_the_controller_takes_the_set_and_makes_leader_and_worker_of_our_templates(kubectl: Kubectl) -> None:
    kubectl.apply(deployment())
    eventually(lambda: set(pods(kubectl)) == {LEADER, WORKER}, lambda: words(kubectl))
    live = kubectl.get("lws", SET)
    group = live["spec"]["leaderWorkerTemplate"]
    assert live["spec"]["networkConfig"] == {"subdomainPolicy": "Shared"}  # the webhook's default: it was asked
    found = pods(kubectl)
    for name, template in ((LEADER, group["leaderTemplate"]), (WORKER, group["workerTemplate"])):
        pod = found[name]
        assert template["metadata"]["labels"].items() <= pod["metadata"]["labels"].items()
        for mine, wanted in zip(pod["spec"]["containers"], template["spec"]["containers"], strict=True):
            assert (mine["image"], mine["command"], mine["args"]) == tuple(
                wanted[field] for field in ("image", "command", "args")
            )
            assert environment(mine)["LWS_LEADER_ADDRESS"] == f"{LEADER}.{SET}.{kubectl.namespace}"
            assert environment(wanted).items() <= environment(mine).items()
    assert environment(found[WORKER]["spec"]["containers"][0])["LWS_WORKER_INDEX"] == "1"


def test_leader_and_worker_answer_together_as_one_process_does(kubectl: Kubectl, forge: Forge, base: Path) -> None:
    ready(kubectl)
    assert say(kubectl, "base") == forge.say(base, None)
    assert kubectl.get("lws", SET)["status"]["readyReplicas"] == 1
    assert not [pod for pod in pods(kubectl).values() if restarts(pod)]


def test_an_adapter_joins_while_they_serve(kubectl: Kubectl, forge: Forge, base: Path, adapter: Path) -> None:
    before = uids(kubectl)
    kubectl.apply(deployment(FIRST))
    served(kubectl)
    assert say(kubectl, "first") == forge.say(base, adapter)
    assert say(kubectl, "base") == forge.say(base, None)
    assert uids(kubectl) == before


def test_where_a_worker_is_killed_the_group_is_made_again_at_once(
    kubectl: Kubectl, forge: Forge, base: Path, adapter: Path
) -> None:
    before = uids(kubectl)
    # All processes of the container but its first, which ends by itself then.
    kubectl("exec", WORKER, "--", "sh", "-c", "kill -9 -1", check=False)
    start = time.monotonic()
    eventually(lambda: renewed(kubectl, before), lambda: words(kubectl), SHUTDOWN_SECONDS)
    print(f"\nmade again after {time.monotonic() - start:.0f} s")
    ready(kubectl)
    print(f"serves again after {time.monotonic() - start:.0f} s")
    served(kubectl)
    assert say(kubectl, "first") == forge.say(base, adapter)


def test_a_change_comes_with_a_second_group_and_no_question_is_left_unanswered(
    kubectl: Kubectl, forge: Forge, base: Path, adapter: Path
) -> None:
    before = uids(kubectl)
    with asking(kubectl, "first") as answers:
        kubectl.apply(deployment(FIRST, length=256))
        eventually(lambda: len(uids(kubectl)) == 4, lambda: words(kubectl))
        eventually(lambda: renewed(kubectl, before), lambda: words(kubectl), ENGINE_START)
        ready(kubectl)
    assert len(answers) > 10
    assert {answer.status for answer in answers} == {200}, [answer for answer in answers if answer.status != 200]
    assert {tokens_of(answer) for answer in answers} == {forge.say(base, adapter)}


def restarts(pod: dict[str, Any]) -> int:
    status = pod["status"]
    return sum(one["restartCount"] for one in [*status["containerStatuses"], *status.get("initContainerStatuses", [])])
