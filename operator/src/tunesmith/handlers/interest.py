"""Who is to be looked at when something else changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.api.kinds import AnyResource
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.decide.references import sources
from tunesmith.reconcile import Key


class Interest:
    """What resources refer to by name or by labels. Nothing is kept of one that is gone."""

    def __init__(self) -> None:
        self._named: dict[Key, set[Key]] = {}
        self._referrers: dict[Key, set[Key]] = {}
        """The same the other way round."""
        self._selecting: dict[Key, dict[str, str]] = {}

    def keep(self, key: Key, resource: AnyResource) -> None:
        """What a resource refers to now."""
        self.forget(key)
        refs = [source.reference for _, source, _ in sources(resource) if source.reference]
        if refs:
            self._named[key] = {Key(kind, key.namespace, name) for kind, name in refs}
        for target in self._named.get(key, ()):
            self._referrers.setdefault(target, set()).add(key)
        if isinstance(resource, ModelDeployment) and resource.spec.adapter_selector:
            self._selecting[key] = resource.spec.adapter_selector.match_labels

    def forget(self, key: Key) -> None:
        """A resource is gone."""
        for target in self._named.pop(key, ()):
            self._referrers[target].discard(key)
            if not self._referrers[target]:
                del self._referrers[target]
        self._selecting.pop(key, None)

    def of(self, key: Key, labels: Mapping[str, str]) -> Iterator[Key]:
        """Those that a change of `key`, which has these labels, is of interest to."""
        yield from self._referrers.get(key, ())
        if key.kind == "FineTuneJob":
            for selecting, wanted in self._selecting.items():
                if key.namespace == selecting.namespace and wanted.items() <= labels.items():
                    yield selecting
