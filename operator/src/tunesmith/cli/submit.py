"""`submit`, `run`, `deploy` and `init`: what makes resources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tunesmith.cli import files, show
from tunesmith.cli.session import Session, command
from tunesmith.cli.watch import follow
from tunesmith.client import Invalid, starters
from tunesmith.client.resources import AnyResource, read
from tunesmith.settings import Settings

Files = Annotated[list[Path], typer.Argument(help="YAML files, folders of them, or - for stdin.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan, the memory and the pods; make nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Take over fields that others own.")]
Config = Annotated[
    Path | None,
    typer.Option("--model-config", help="The model's config.json, where it cannot be read from here (pvc://)."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field of the spec: training.maxSteps=10. May be repeated.")
]
MOST_BYTES = 1_000_000
USED = frozenset({"ConfigMap", "Secret", "PersistentVolumeClaim"})
"""Kinds that jobs use, which `submit` makes too."""
Wait = Annotated[bool, typer.Option("--wait", help="Watch until it is done.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (submit, run, deploy, init):
        command(app, rich_help_panel="Make")(function)


def submit(
    session: Session,
    paths: Files,
    changes: Set = None,
    dry_run: DryRun = False,
    model_config: Config = None,
    force: Force = False,
    wait: Wait = False,
) -> None:
    """Make or change resources from files. All are checked before the first is sent.

    ConfigMaps, Secrets and claims in the files are made, too; other kinds are left to `kubectl apply`.
    """
    bodies = files.load(paths)
    used = [one for one in bodies if one["kind"] in USED]
    other = [one for one in bodies if not files.ours(one) and one not in used]
    mine = [read(files.assign(one, changes or [])) for one in bodies if files.ours(one)]
    if other:
        names = ", ".join(f"{one['kind']} {one['metadata'].get('name')}" for one in other)
        session.say(f"passed over, for kubectl apply: {names}")
    if not mine and not used:
        raise Invalid(f"{', '.join(map(str, paths))}: there is nothing of tunesmith in it")
    send(session, mine, dry_run, model_config, force, wait, used)


def run(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the FineTuneJob.")],
    model: Annotated[str, typer.Option(help="Address of the model: hf://…, pvc://…, s3://…")],
    data: Annotated[list[str], typer.Option(help="A dataset: an address, or a file here. May be repeated.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(starters.METHODS)}.")] = "SFT",
    tuner: Annotated[str, typer.Option(help="LoRA, QLoRA or Full.")] = "LoRA",
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of one pod; 0: on CPU.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Pods that train together.")] = 1,
    changes: Set = None,
    dry_run: DryRun = False,
    model_config: Config = None,
    force: Force = False,
    wait: Wait = False,
) -> None:
    """Make a FineTuneJob out of flags. `--dry-run -o yaml` shows it, and what it would become."""
    known = {one.lower(): one for one in starters.METHODS}
    if method.lower() not in known:
        raise Invalid(f"--method {method}: there is no such method", f"one of {', '.join(starters.METHODS)}")
    uris, used = datasets(name, data)
    spec: dict[str, Any] = {"model": {"uri": model}, "datasets": [{"uri": one} for one in uris], "nodes": nodes}
    spec["tuner"] = {"type": tuner}
    spec["resources"] = {"limits": {"nvidia.com/gpu": gpus}} if gpus else {}
    body = files.assign(starters.train(name, known[method.lower()], **spec), changes or [])
    send(session, [read(body)], dry_run, model_config, force, wait, used)


def datasets(name: str, data: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Addresses of the datasets, and the ConfigMap that takes those which are files here."""
    here = [Path(one) for one in data if "://" not in one]
    for path in here:
        if same := [one for one in here if one.name == path.name and one != path]:
            raise Invalid(f"--data: {path} and {same[0]} would be one key of a ConfigMap", "rename one of them")
    try:
        texts = {path.name: path.read_text() for path in here}
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"--data: {error}", "give a file of rows, or an address: hf://, s3://, pvc://") from error
    size = sum(len(text.encode()) for text in texts.values())
    if size > MOST_BYTES:
        hint = "put them on a claim (pvc://), in a bucket (s3://) or a hub (hf://)"
        raise Invalid(f"--data: the files have {size} bytes; a ConfigMap holds {MOST_BYTES}", hint)
    uris = [one if "://" in one else f"configmap://{name}-data/{Path(one).name}" for one in data]
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-data"}}
    return uris, [{**head, "data": texts}] if texts else []


def deploy(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the ModelDeployment.")],
    model: Annotated[str, typer.Option(help="Address of the model, or mergejob/NAME.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=finetunejob/JOB or NAME=ADDRESS. May be repeated.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of one pod; 0: on CPU.")] = 1,
    replicas: Annotated[int, typer.Option(min=0, help="Pods.")] = 1,
    changes: Set = None,
    dry_run: DryRun = False,
    force: Force = False,
    wait: Wait = False,
) -> None:
    """Serve a model and adapters."""
    spec: dict[str, Any] = {"model": source(model), "replicas": replicas}
    if adapter:
        spec["adapters"] = [{"name": one.partition("=")[0], **source(one.partition("=")[2])} for one in adapter]
    if gpus:
        spec["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
    body = files.assign(starters.custom("ModelDeployment", name, spec), changes or [])
    send(session, [read(body)], dry_run, None, force, wait)


def source(text: str) -> dict[str, Any]:
    """A reference or an address."""
    from tunesmith.client.answers import kind_of

    if "://" in text:
        return {"uri": text}
    kind, slash, name = text.partition("/")
    if not slash:
        return {"fineTuneJobRef": {"name": text}}
    found = kind_of(kind)
    return {f"{found[0].lower()}{found[1:]}Ref": {"name": name}}


def init(
    session: Session,
    what: Annotated[str, typer.Argument(help="A method (SFT, DPO, …), or another kind than FineTuneJob.")] = "SFT",
    name: Annotated[str, typer.Option(help="Name of the resource.")] = "my-job",
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Where to write it; default: stdout.")] = None,
) -> None:
    """Write a starter file, one per method and kind."""
    known = {one.lower(): one for one in (*starters.METHODS, *starters.KINDS)}
    if what.lower() not in known:
        raise Invalid(f"there is no starter for {what}", f"one of {', '.join(known.values())}")
    text = starters.text(known[what.lower()], name)
    if file is None:
        print(text, end="")
        return
    if file.exists():
        raise Invalid(f"{file} exists", "choose another name, or remove it")
    file.write_text(text)
    session.say(f"wrote {file}: edit it, then `tunesmith submit {file}`")


def send(
    session: Session,
    resources: list[AnyResource],
    dry_run: bool,
    config: Path | None,
    force: bool,
    wait: bool,
    used: Sequence[dict[str, Any]] = (),
) -> None:
    """Send what was checked, or show what would be made."""
    if dry_run:
        for one in resources:
            show_preview(session, one, config)
        return
    for body in used:
        session.client.apply(body, force=force)
        session.say(f"{body['kind']} {body['metadata']['name']} applied")
    made = [session.client.submit(one, force=force) for one in resources]
    found: list[AnyResource] = list(made)
    session.answer([show.body(one) for one in found], lambda: "\n".join(f"{o.kind} {o.name} submitted" for o in found))
    if wait:
        follow(session, found)


def read_config(path: Path) -> dict[str, Any]:
    """A model's config.json, given as the file or its folder."""
    try:
        found: dict[str, Any] = json.loads((path / "config.json" if path.is_dir() else path).read_text())
    except (OSError, ValueError) as error:
        raise Invalid(f"--model-config {path}: {error}", "give a model's folder or its config.json") from error
    return found


def show_preview(session: Session, one: AnyResource, config: Path | None) -> None:
    """The plan, the memory and the pods."""
    from rich.syntax import Syntax

    from tunesmith.client.preview import preview

    seen = preview(one, Settings(), session.namespace or "default", read_config(config) if config else None)
    data = {
        "resource": one.manifest(),
        "plan": seen.plan.body() if seen.plan else None,
        "memory": {**seen.memory.status.body(), "fits": seen.memory.fits} if seen.memory else None,
        "notes": seen.notes,
        "objects": seen.objects,
    }
    if session.output.value != "table":
        session.answer(data, "")
        return
    session.out.rule(f"{one.kind} {one.name}", align="left")
    for title, part in (("plan", data["plan"]), ("objects", seen.objects)):
        if part:
            session.out.print(f"[bold]# {title}[/]")
            dump = yaml.safe_dump_all if isinstance(part, list) else yaml.safe_dump
            text = dump(part, sort_keys=False, allow_unicode=True)
            session.out.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    if seen.memory:
        session.out.print(show.memory(seen.memory.status))
        session.out.print(seen.memory.status.summary, markup=False, soft_wrap=True)
    for note in seen.notes:
        session.out.print(f"note: {note}", markup=False, soft_wrap=True)
