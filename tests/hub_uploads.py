"""Requests of `huggingface_hub` that change a repository of the stand-in: repositories, uploads, commits, tags.

Uploads take the way of Git LFS, so clients need `HF_HUB_DISABLE_XET=1`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.hub_stand_in import HubStandIn

_REPOSITORY = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit|tag)/(?P<revision>[^/]+)")
_BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
_LARGE = (".safetensors", ".parquet", ".bin")

Answer = tuple[int, Any]


def is_upload(method: str, path: str) -> bool:
    """Return whether a request changes something."""
    known = path in ("/api/repos/create", "/api/validate-yaml") or _REPOSITORY.fullmatch(path) or _BATCH.fullmatch(path)
    return method == "PUT" or (method == "POST" and bool(known))


def answer(hub: HubStandIn, path: str, body: bytes) -> Answer:
    """Change the stand-in, and return the status and the JSON of the answer."""
    if path.startswith("/lfs/"):
        hub.objects[path.removeprefix("/lfs/")] = body
        return 200, {}
    if match := _BATCH.fullmatch(path):
        return 200, {"transfer": "basic", "objects": [_action(hub, each) for each in json.loads(body)["objects"]]}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if ("model", name) in hub.repositories:
            return 409, {"url": f"{hub.url}/{name}"}
        hub.add_model(name, {".gitattributes": b""})
        hub.visibility[name] = wanted["visibility"]
        return 200, {"url": f"{hub.url}/{name}"}
    match = _REPOSITORY.fullmatch(path)
    assert match is not None
    repository = hub.repositories.get(("model", match["repo"]))
    if repository is None:
        return 404, {"error": "no such repository"}
    if match["what"] == "tag":
        tag = json.loads(body)["tag"]
        if tag in repository.tags:
            return 409, {"error": "the tag exists"}
        repository.tags[tag] = match["revision"]
        return 200, {}
    present = repository.commits[repository.branches[match["revision"]]]
    if match["what"] == "preupload":
        return 200, {"files": [_mode(present, file["path"]) for file in json.loads(body)["files"]]}
    files = _committed(hub, dict(present), [json.loads(line) for line in body.splitlines()])
    commit = hub.add_model(match["repo"], files, branch=match["revision"])
    return 200, {"commitOid": commit, "commitUrl": f"{hub.url}/{match['repo']}/commit/{commit}"}


def _action(hub: HubStandIn, wanted: dict[str, Any]) -> dict[str, Any]:
    if wanted["oid"] in hub.objects:
        return wanted
    return {**wanted, "actions": {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}}


def _mode(present: Any, path: str) -> dict[str, Any]:
    if path.endswith(_LARGE):
        oid = hashlib.sha256(present[path]).hexdigest() if path in present else None
        return {"path": path, "uploadMode": "lfs", "shouldIgnore": False, "oid": oid}
    data = present.get(path)
    oid = None if data is None else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oid}


def _committed(hub: HubStandIn, files: dict[str, bytes], lines: list[dict[str, Any]]) -> dict[str, bytes]:
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.objects[value["oid"]]
        elif line["key"] == "deletedFile":
            del files[value["path"]]
        else:
            assert line["key"] == "header"
    return files
