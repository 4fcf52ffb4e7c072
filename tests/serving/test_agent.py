"""The agent and the guard with a real vLLM: what becomes of adapters."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from serving.conftest import ENGINE_START, call, tokens_of, until
from tunesmith import artifacts

pytestmark = pytest.mark.trainer


def metric(pod, name: str) -> float:
    lines = pod.metrics().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@pytest.fixture(autouse=True)
def only_first(pod):
    """Each test leaves the pod as it was."""
    yield
    for name in set(pod.adapters) - {"first"}:
        del pod.adapters[name]
    pod.want()
    until(lambda: set(pod.models()) <= {"base", "first"})


@pytest.fixture
def first(pod) -> Path:
    return Path(pod.adapters["first"]["path"])


def test_the_mounted_state_is_served_and_answers_as_peft_does(pod, forge, first):
    assert pod.say("first") == forge.say(pod.base, first)
    assert pod.say("base") == forge.say(pod.base, None)
    assert pod.say("first") != pod.say("base")


def test_the_estimate_of_the_kv_cache_is_what_vllm_makes_of_a_gibibyte(pod):
    found = until(lambda: pod.status().get("footprint"))
    [tokens] = re.findall(r"KV cache size: ([\d,]+) tokens", (pod.root / "engine.log").read_text())[:1]
    assert found["kvBytesPerToken"] == pytest.approx(2**30 / int(tokens.replace(",", "")), rel=0.02)
    weights = sum(path.stat().st_size for path in pod.base.glob("*.safetensors"))
    assert found["weightsBytes"] == pytest.approx(weights, rel=0.02)


def test_a_sent_state_is_served(pod, forge):
    path = forge.adapter(pod.base, seed=2)
    start = time.monotonic()
    pod.want(quick=path)
    found = pod.settle("quick")
    print(f"\nPUT -> Ready: {time.monotonic() - start:.3f} s")
    assert pod.models()["quick"] == str(pod.store / "quick" / found["digest"])
    assert pod.say("quick") == forge.say(pod.base, path)
    pod.want(quick=None)
    until(lambda: "quick" not in pod.models())
    assert pod.complete("quick").status == 404


def test_a_change_of_the_mounted_file_is_served_without_anybody_telling(pod, forge):
    path = forge.adapter(pod.base, seed=3)
    pod.adapters["mounted"] = {"name": "mounted", "uri": f"file://{path}", "path": str(path)}
    pod.want(mounted=True)
    pod.settle("mounted")
    assert pod.say("mounted") == forge.say(pod.base, path)
    del pod.adapters["mounted"]
    pod.want(mounted=True)
    until(lambda: "mounted" not in pod.models())


def test_a_new_version_replaces_the_old_one_under_its_name(pod, forge):
    old, new = forge.adapter(pod.base, seed=4), forge.adapter(pod.base, seed=5)
    pod.want(versioned=old)
    before = pod.settle("versioned")["digest"]
    pod.want(versioned=new)
    after = until(lambda: (a := pod.adapter("versioned"))["state"] == "Ready" and a["digest"] != before and a)
    assert pod.models()["versioned"].endswith(after["digest"])
    assert pod.say("versioned") == forge.say(pod.base, new)


def break_config(path: Path, **fields: Any) -> Path:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return path


def truncated(path: Path) -> Path:
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return path


def without(path: Path, name: str) -> Path:
    (path / name).unlink()
    return path


def pickled(path: Path) -> Path:
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    return path


def linked(path: Path) -> Path:
    file = path / "adapter_model.safetensors"
    file.rename(path.with_suffix(".elsewhere"))
    file.symlink_to(path.with_suffix(".elsewhere"))
    return path


BAD: dict[str, tuple[Callable[[Any, Path], Path], str]] = {
    "half-the-hidden-size": (lambda f, b: f.adapter(f.base(hidden=64)), "trained on another base"),
    "three-times-the-layers": (lambda f, b: f.adapter(f.base(layers=6)), "layers.2.mlp.down_proj is not in the base"),
    "dora": (lambda f, b: f.adapter(b, use_dora=True), "DoRA is not supported"),
    "modules-to-save": (lambda f, b: f.adapter(b, modules_to_save=["norm"]), "modules_to_save is ['norm']"),
    "rank": (lambda f, b: f.adapter(b, rank=32), "spec.engine.maxLoraRank to at least 32"),
    "rank-pattern": (lambda f, b: f.adapter(b, rank_pattern={"q_proj": 32}), "rank_pattern[q_proj] is 32"),
    "truncated": (lambda f, b: truncated(f.adapter(b)), "truncated"),
    "no-config": (lambda f, b: without(f.adapter(b), "adapter_config.json"), "adapter_config.json is not there"),
    "no-weights": (lambda f, b: without(f.adapter(b), "adapter_model.safetensors"), "is not there"),
    "pickle": (lambda f, b: pickled(f.adapter(b)), "only safetensors are loaded"),
    "not-lora": (lambda f, b: break_config(f.adapter(b), peft_type="IA3"), "peft_type is 'IA3'"),
    "symlink": (lambda f, b: linked(f.adapter(b)), "is a symlink"),
    "nothing-there": (lambda f, b: Path("/nowhere/at/all"), "is not there"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_adapter_is_refused_with_its_reason_while_the_others_serve(pod, forge, first, kind):
    make, reason = BAD[kind]
    pod.want(bad=make(forge, pod.base))
    found = pod.settle("bad", "Failed")
    assert reason in found["message"]
    assert "bad" not in pod.models()
    time.sleep(1.5)
    assert pod.adapter("bad")["attempts"] == 1, "a permanent error is not tried again"
    assert pod.say("first") == forge.say(pod.base, first)
    assert pod.status()["ready"]


def test_a_mended_source_is_served_without_anybody_telling(pod, forge):
    path = forge.adapter(pod.base, seed=6)
    weights = path / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-8])
    pod.want(mended=path)
    pod.settle("mended", "Failed")
    weights.write_bytes(good)
    pod.settle("mended")
    assert pod.say("mended") == forge.say(pod.base, path)


def test_the_old_version_serves_on_where_the_new_one_is_bad(pod, forge):
    good = forge.adapter(pod.base, seed=7)
    pod.want(kept=good)
    digest = pod.settle("kept")["digest"]
    pod.want(kept=truncated(forge.adapter(pod.base, seed=8)))
    found = pod.settle("kept", "Failed")
    assert f"version {digest[:12]} is served on" in found["message"]
    assert pod.say("kept") == forge.say(pod.base, good)


def test_names_lead_nowhere(pod, first):
    outside = pod.root / "outside"
    shutil.copytree(first, outside)
    for name in ("../outside", "..", "/etc", "a/b", "", "base"):
        pod.adapters[name] = {"name": name, "uri": f"file://{outside}", "path": str(outside)}
    pod.want()
    until(lambda: pod.status()["revision"] == pod.revision)
    for name in ("../outside", "..", "/etc", "a/b", "", "base"):
        assert pod.settle(name, "Failed")["message"]
        del pod.adapters[name]
    assert set(pod.models()) == {"base", "first"}
    for model in ("../outside", str(outside), str(first), f"first/{pod.adapter('first')['digest']}"):
        assert pod.complete(model).status == 404
    pod.want()


def test_more_adapters_than_slots_are_all_served(pod, forge):
    paths = {f"many{n}": forge.adapter(pod.base, seed=20 + n) for n in range(4)}
    pod.want(**paths)
    for name in paths:
        pod.settle(name)
    for _ in range(2):  # the second time, all of them were evicted in between
        for name, path in paths.items():
            assert pod.say(name) == forge.say(pod.base, path)


def test_files_outlive_the_requests_that_need_them_and_no_longer(pod, forge):
    path = forge.adapter(pod.base, seed=9)
    fillers = {f"filler{n}": forge.adapter(pod.base, seed=30 + n) for n in range(2)}
    pod.want(leaving=path, **fillers)
    folder = pod.store / "leaving" / pod.settle("leaving")["digest"]
    stream = pod.stream("leaving", tokens=450)
    pod.want(leaving=None)
    until(lambda: "leaving" not in pod.models())
    seen = []
    for line in stream:
        if line.startswith(b"data: {"):
            seen.append(json.loads(line[6:])["choices"][0]["text"])
            assert folder.is_dir()
    assert len("".join(seen)) > 100
    until(lambda: not folder.exists())
    assert not folder.parent.exists()
    for name, filler in fillers.items():  # evicts what is left of it
        pod.settle(name)
        assert pod.say(name) == forge.say(pod.base, filler)


LONG = 450


def token_ids(lines) -> tuple[int, ...]:
    """All tokens of a stream."""
    events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    return tuple(token for event in events for token in event["choices"][0].get("token_ids") or [])


def test_two_versions_that_both_answer_keep_their_slots_while_a_third_adapter_is_loaded(pod, forge):
    """The engine has two slots. vLLM without agent/plugin.py dies here."""
    old, new, other = (forge.adapter(pod.base, seed=seed) for seed in (60, 61, 62))
    pod.want(doubled=old)
    pod.settle("doubled")
    with pod.stream("doubled", tokens=LONG) as before:
        pod.want(doubled=new)
        until(lambda: pod.models().get("doubled", "").endswith(artifacts.digest(new)))
        with pod.stream("doubled", tokens=LONG) as after:
            pod.want(third=other)
            pod.settle("third")
            for response, path in ((before, old), (after, new)):
                assert token_ids([response.first_line, *response]) == forge.say(pod.base, path, tokens=LONG)
    assert pod.say("third") == forge.say(pod.base, other)
    pod.want(doubled=None, third=None)


STREAMS, TOKENS = 16, 48


@dataclass
class Stream:
    """One streamed answer: when it was asked for, its status, and all its tokens."""

    began: float
    status: int = 0
    tokens: list[int] = field(default_factory=list)
    ended: float = 0.0


def stream(pod, model: str) -> Stream:
    one = Stream(time.monotonic())
    try:
        with pod.stream(model, tokens=TOKENS) as response:
            one.status = response.status
            for line in [response.first_line, *response]:
                one.tokens += token_ids([line])
    except urllib.error.HTTPError as error:
        one.status = error.code
    one.ended = time.monotonic()
    return one


def test_versions_change_under_sixteen_streams_and_every_token_is_right(pod, forge):
    """No request is refused, no answer mixes versions, and what is asked for after a switch is answered by the new
    version: all compared with what transformers and PEFT say offline.
    """
    versions = [forge.adapter(pod.base, seed=10), forge.adapter(pod.base, seed=11)]
    truth = {forge.say(pod.base, path, tokens=TOKENS): n for n, path in enumerate(versions)}
    assert len(truth) == 2
    pod.want(swapped=versions[0])
    pod.settle("swapped")
    stop = threading.Event()
    answers: list[Stream] = []
    switches: list[tuple[float, float, int]] = []

    def ask() -> None:
        while not stop.is_set():
            answers.append(stream(pod, "swapped"))

    threads = [threading.Thread(target=ask) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    for turn in range(1, 7):
        time.sleep(2)
        begin = time.monotonic()
        pod.want(swapped=versions[turn % 2])
        wanted = artifacts.digest(versions[turn % 2])
        until(lambda: (a := pod.adapter("swapped"))["state"] == "Ready" and a["digest"] == wanted, 30)  # noqa: B023
        switches.append((begin, time.monotonic(), turn % 2))
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    pod.want(swapped=None)
    assert {one.status for one in answers} == {200}
    seen = [truth.get(tuple(one.tokens), "a mix") for one in answers]
    print(f"\n{len(seen)} streams over {len(switches)} swaps: {seen.count(0)} old, {seen.count(1)} new")
    assert set(seen) == {0, 1}
    spans = [(0.0, 0), *((ready, which) for _, ready, which in switches)]
    ends = [begin for begin, _, _ in switches] + [float("inf")]
    late = 0
    for one, version in zip(answers, seen, strict=True):
        for (ready, which), end in zip(spans, ends, strict=True):
            if ready <= one.began and one.began < end:
                late += 1
                assert version == which or one.ended > end, "asked for after a switch, answered by the version before"
                if one.ended <= end:
                    assert version == which
    assert late > STREAMS


SMOKE = {"prompt": "who are you?", "maxTokens": 8}


def test_a_version_that_fails_its_smoke_request_never_answers_anybody(pod, forge):
    good, same = forge.adapter(pod.base, seed=60), forge.adapter(pod.base, seed=61, zero=True)
    pod.more = {"smoke": SMOKE}
    try:
        pod.want(tried=good)
        digest = pod.settle("tried")["digest"]
        pod.want(tried=same)  # its B matrices are zero: it says what the base says
        found = pod.settle("tried", "Failed")
    finally:
        pod.more = {}
    assert (found["reason"], found["digest"], found["permanent"]) == ("SmokeFailed", digest, True)
    assert "is that of the base model" in found["message"]
    assert pod.say("tried") == forge.say(pod.base, good)
    assert not [name for name in pod.models() if name.startswith("@")]


def test_an_adapters_answers_end_where_it_learned_to_end_them(pod, forge):
    """Without agent/plugin.py they go on: vLLM knows the ends of the base only."""
    plain, ended = forge.adapter(pod.base, seed=70), forge.adapter(pod.base, seed=70)
    answer = forge.say(pod.base, plain)
    end = answer[5]
    (ended / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    pod.want(plain=plain, ended=ended)
    pod.settle("plain")
    pod.settle("ended")
    said = pod.complete("ended", ignore_eos=False)
    assert tokens_of(said) == answer[: answer.index(end) + 1]
    assert said.json["choices"][0]["finish_reason"] == "stop"
    assert pod.say("plain", ignore_eos=False) == answer
    assert pod.say("ended") == answer
    pod.want(plain=None, ended=None)


def test_an_adapter_is_asked_in_the_form_that_it_learned(pod, forge):
    """Without agent/plugin.py vLLM asks it in that of the base."""
    formed = forge.adapter(pod.base, seed=71)
    (formed / "chat_template.jinja").write_text("{% for m in messages %}I am {{ m['content'] }}{% endfor %}")
    pod.want(formed=formed)
    pod.settle("formed")
    turns = [{"role": "user", "content": "hello"}]
    for model, text in (("formed", "I am hello"), ("base", "hello")):
        body = {"model": model, "messages": turns}
        asked = [call("POST", f"{pod.url}/tokenize", body).json["tokens"]]
        more = {"max_tokens": 1, "return_token_ids": True}
        asked.append(call("POST", f"{pod.url}/v1/chat/completions", body | more).json["prompt_token_ids"])
        for tokens in asked:
            said = call("POST", f"{pod.url}/detokenize", {"model": model, "tokens": tokens})
            assert said.json["prompt"] == text
        answer = call("POST", f"{pod.url}/v1/responses", {"model": model, "input": "hello", "max_output_tokens": 1})
        assert answer.json["usage"]["input_tokens"] == len(asked[0])
    pod.want(formed=None)


def test_what_somebody_unloads_comes_back(pod, forge, first):
    before = metric(pod, "tunesmith_agent_drift_repaired_total")
    token = {"X-Tunesmith-Token": pod.token}
    assert pod.admin("/v1/unload_lora_adapter", {"lora_name": "first"}, **token).status == 200
    until(lambda: "first" in pod.models())
    assert metric(pod, "tunesmith_agent_drift_repaired_total") == before + 1
    assert pod.say("first") == forge.say(pod.base, first)


def test_only_the_admin_token_changes_the_state(pod):
    state = {**pod.state(), "revision": pod.revision + 100}
    assert pod.put(state, token="guess").status == 401
    assert pod.put(state, token="x" * 32).status == 401
    assert pod.put({**pod.state(), "revision": pod.revision - 1}).status == 409
    assert pod.put({"revision": "many"}).status == 422
    assert pod.put(pod.state()).status == 200, "the same again is no change"
    assert pod.status()["revision"] == pod.revision


def test_a_restarted_agent_finds_all_as_it_was(pod, forge, first):
    folder = pod.store / "first" / pod.adapter("first")["digest"]
    before = folder.stat().st_ino
    pod.agent.stop(signal.SIGKILL)
    assert pod.say("first") == forge.say(pod.base, first)
    pod.agent.start()
    pod.settle("first")
    until(lambda: pod.status()["ready"])
    assert folder.stat().st_ino == before, "nothing was fetched or written again"
    assert pod.say("first") == forge.say(pod.base, first)


def test_a_terminated_agent_ends_cleanly(pod):
    assert pod.agent.stop(signal.SIGTERM) == 0
    pod.agent.start()
    pod.settle("first")


def test_a_restarted_engine_gets_its_adapters_back_before_the_pod_is_ready(pod, forge, first):
    second = forge.adapter(pod.base, seed=12)
    pod.want(second=second)
    pod.settle("second")
    pod.engine.stop(signal.SIGKILL)
    until(lambda: not pod.status()["ready"])
    assert pod.status()["engine"] == "Starting"
    pod.engine.start()
    until(pod.up, ENGINE_START)
    up = time.monotonic()
    until(lambda: {"first", "second"} <= set(pod.models()))
    print(f"\nengine up -> both adapters back: {time.monotonic() - up:.3f} s")
    until(lambda: pod.status()["ready"])
    assert pod.say("first") == forge.say(pod.base, first)
    assert pod.say("second") == forge.say(pod.base, second)
