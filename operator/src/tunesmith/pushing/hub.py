"""To a repository of the Hugging Face Hub, by its own client: one commit, so all of it is visible at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith import artifacts
from tunesmith.fetching import PERMANENT, Credentials, FetchError, Kind, Progress, hub
from tunesmith.pushing import DENIED, NEEDED
from tunesmith.pushing.content import MAX_MANIFEST, Content

MAIN = "main"


def push(uri: str, content: Content, keys: Credentials, private: bool, progress: Progress) -> str:
    """Make the head of a branch the artefact. Returns the commit. Raises FetchError."""
    repository, revision = hub.repository_of(uri)
    kind = content.repository_kind
    branch, token = revision or MAIN, hub.token_of(keys)
    with told(branch, kind, keys):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(token=token)
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        if branch != MAIN:
            api.create_branch(repository, repo_type=kind, branch=branch, exist_ok=True)
        info = api.dataset_info if kind == "dataset" else api.model_info
        head = info(repository, revision=branch)
        there = [file.rfilename for file in head.siblings or []]
        if artifacts.MANIFEST in there and head.sha:
            at = f"hf://{repository}@{head.sha}"
            if content.is_that_of(hub.read(at, artifacts.MANIFEST, 0, MAX_MANIFEST, keys, kind)):
                progress(f"{repository} has it already")
                return head.sha
        progress(f"{repository}: {len(content.files)} files to {branch}")
        # Not upload_folder, which with hf_xet makes several commits.
        made = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, file.path) for name, file in content.files.items()),
                *(CommitOperationDelete(n) for n in there if n not in content.files and n != ".gitattributes"),
            ],
            repo_type=kind,
            commit_message=content.message,
            revision=branch,
            parent_commit=head.sha,  # never over what another has pushed meanwhile
        )
        return str(made.oid)


@contextmanager
def told(branch: str, kind: Kind, keys: Credentials) -> Iterator[None]:
    """What goes wrong in the Hub's client, as a FetchError."""
    from huggingface_hub.errors import HfHubHTTPError

    with hub.told(branch, kind, keys):
        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in DENIED:
                raise FetchError(
                    f"the Hub answers {status}: the Secret of secretRef needs {NEEDED['hf']}", PERMANENT
                ) from None
            if 400 <= status < 500 and status not in (408, 409, 412, 429):
                raise FetchError(f"the Hub answers {status}: {error}", PERMANENT) from None
            raise
