"""A pod's volumes as local directories, so that a sidecar run as a plain process can read what it would mount.

A process can't have files at a mount path of its own, so the path is replaced in its arguments and variables; a
volume whose mount path neither names is not made. Tokens are requested once and not renewed (they last 600 s or more).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from devcluster.errors import DevClusterError
from devcluster.kubeapi import ApiError, KubeApi
from devcluster.podspec import field_value

Object = dict[str, Any]

_TOKEN_SECONDS = 3600


class Volumes:
    """Makes the volumes that one container of a pod mounts, below `directory`."""

    def __init__(self, pod: Object, pod_ip: str, directory: Path, api: KubeApi) -> None:
        self._pod = pod
        self._pod_ip = pod_ip
        self._directory = directory
        self._api = api

    async def make(self, container: Object, texts: Iterable[str]) -> dict[str, str]:
        """Make the volumes whose mount path occurs in `texts`; return mount path -> local directory.

        DevClusterError for a ConfigMap, Secret or token that can't be had.
        """
        joined = "\n".join(texts)
        declared = {volume["name"]: volume for volume in self._pod["spec"].get("volumes") or []}
        made: dict[str, str] = {}
        for mount in container.get("volumeMounts") or []:
            if mount["mountPath"] in joined:
                place = self._directory / mount["name"]
                place.mkdir(parents=True, exist_ok=True)
                for path, content in (await self._files(declared[mount["name"]])).items():
                    file = place / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
                made[mount["mountPath"]] = str(place / mount.get("subPath", ""))
        # The longest path first, so that a path inside another is replaced by its own directory.
        return dict(sorted(made.items(), key=lambda pair: -len(pair[0])))

    async def _files(self, volume: Object) -> dict[str, bytes]:
        if "emptyDir" in volume:
            return {}
        if "projected" in volume:
            files: dict[str, bytes] = {}
            for source in volume["projected"]["sources"]:
                files |= await self._source(source)
            return files
        if "secret" in volume:
            named = volume["secret"] | {"name": volume["secret"]["secretName"]}
            return await self._source({"secret": named})
        return await self._source({kind: volume[kind] for kind in ("configMap", "downwardAPI") if kind in volume})

    async def _source(self, source: Object) -> dict[str, bytes]:
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            return {wanted["path"]: (await self._token(wanted)).encode()}
        if "secret" in source:
            return _selected(source["secret"], await self._data("secrets", source["secret"]))
        if "configMap" in source:
            return _selected(source["configMap"], await self._data("configmaps", source["configMap"]))
        items = source.get("downwardAPI", {}).get("items") or []
        return {
            item["path"]: field_value(self._pod, item["fieldRef"]["fieldPath"], self._pod_ip).encode()
            for item in items
            if "fieldRef" in item
        }

    async def _token(self, wanted: Object) -> str:
        metadata = self._pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec: Object = {
            "expirationSeconds": wanted.get("expirationSeconds", _TOKEN_SECONDS),
            "audiences": [wanted["audience"]] if wanted.get("audience") else [],
            "boundObjectRef": bound,
        }
        account = self._pod["spec"].get("serviceAccountName") or "default"
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        answer = await self._api.request("POST", path, {"spec": spec})
        return str(answer["status"]["token"])

    async def _data(self, kind: str, reference: Object) -> dict[str, bytes]:
        path = f"/api/v1/namespaces/{self._pod['metadata']['namespace']}/{kind}/{reference['name']}"
        try:
            answer = await self._api.request("GET", path)
        except ApiError as error:
            if error.status == 404 and reference.get("optional"):
                return {}
            raise
        data: Mapping[str, str] = answer.get("data") or {}
        if kind == "secrets":
            return {key: base64.b64decode(text) for key, text in data.items()}
        return {key: text.encode() for key, text in data.items()}


def _selected(reference: Object, data: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files that a reference's items ask for, or one file a key where it has none."""
    items = reference.get("items")
    if not items:
        return dict(data)
    missing = [item["key"] for item in items if item["key"] not in data]
    if missing and not reference.get("optional"):
        raise DevClusterError(f"{reference['name']} has no key {', '.join(missing)}")
    return {item["path"]: data[item["key"]] for item in items if item["key"] in data}
