"""Minimal Hugging Face hub on loopback: the requests of huggingface_hub and datasets.

Faults can be switched on: connections cut in the middle of a file, and content that contradicts its checksum.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class MiniHub:
    """Folders by repository name: models as "org/name", data sets as "datasets/org/name"."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        """Serve the repositories without faults."""
        self.repositories = repositories
        self.cuts = 0
        """Number of the next large transfers that break off."""
        self.given = 5000
        """Bytes sent before a transfer breaks off."""
        self.altered = ""
        """Name of a file that is sent with one byte changed."""
        self.sent: Counter[str] = Counter()
        """Number of transfers of each file's content."""
        self.token, self.room = "", Path()
        """Token that may write, and the folder for new repositories."""
        self.large: dict[str, bytes] = {}
        """Uploaded content of large files by SHA-256."""
        self.commits: list[list[str]] = []
        """Names of the files in each commit."""
        self.private: set[str] = set()
        """Repositories that others cannot see."""
        self.drops = ""
        """Part of the path of requests that are not answered: the connection is closed."""
        self.asked: list[str] = []
        """Paths of all requests."""

    def files(self, repository: str) -> list[Path]:
        """Return the files of a repository, sorted."""
        return sorted(path for path in self.repositories[repository].rglob("*") if path.is_file())

    def entry(self, repository: str, file: Path) -> dict:
        """Return a file's entry in tree and paths-info replies: SHA-256 for LFS files, git hash for all."""
        content = file.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        name = str(file.relative_to(self.repositories[repository]))
        description = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if file.suffix in (".safetensors", ".parquet"):
            description["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return description


def handler_of(hub: MiniHub) -> type[BaseHTTPRequestHandler]:
    """Return the request handler of a hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

        def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def reply_json(self, value: object) -> None:
            self.reply(json.dumps(value).encode(), Content_Type="application/json")

        def missing(self, error_code: str) -> None:
            self.reply(b"", 404, X_Error_Code=error_code, X_Error_Message=f"{error_code}: {self.path}")

        def answer(self) -> None:
            path = unquote(urlparse(self.path).path).strip("/")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append(path)
            if hub.drops and hub.drops in path:
                self.close_connection = True
                return
            if self.write(path, body):
                return
            if path.startswith("api/"):
                self.api(path.removeprefix("api/").removeprefix("models/"), body)
            elif "/resolve/" in path:
                repository, _, rest = path.partition("/resolve/")
                self.content(repository, rest.partition("/")[2])
            else:
                self.reply(b"")

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def write(self, path: str, body: bytes) -> bool:
            """Answer a request that needs the token; return False for any other."""
            if path == "api/validate-yaml":  # the header of a card
                self.reply_json({"errors": [], "warnings": []})
                return True
            verbs = ("whoami-v2", "repos/create", "preupload", "commit", "objects/batch", "upload/")
            if not any(verb in path for verb in verbs):
                return False
            if self.headers.get("Authorization") != f"Bearer {hub.token}" and "upload/" not in path:
                self.reply(b'{"error": "Invalid username or password."}', 401)
            elif "whoami-v2" in path:
                self.reply_json({"name": "me", "type": "user", "orgs": [], "auth": {"type": "access_token"}})
            elif "repos/create" in path:
                wanted = json.loads(body)
                name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
                if name in hub.repositories:
                    self.reply(b'{"error": "You already created this model repo"}', 409)
                    return True
                hub.repositories[name] = hub.room / name
                hub.private |= {name} if wanted.get("visibility") == "private" or wanted.get("private") else set()
                (hub.room / name).mkdir(parents=True, exist_ok=True)
                self.reply_json({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
            elif "preupload" in path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
                files = [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in modes.items()]
                self.reply_json({"files": files})
            elif "objects/batch" in path:
                objects = json.loads(body)["objects"]
                for entry in objects:
                    href = f"http://{self.headers['Host']}/upload/{entry['oid']}"
                    entry["actions"] = {"upload": {"href": href, "header": {}}}
                self.reply_json({"transfer": "basic", "objects": objects})
            elif "upload/" in path:
                hub.large[path.partition("upload/")[2]] = body
                self.reply(b"")
            else:
                self.commit(path.partition("/commit/")[0].removeprefix("api/models/"), body)
            return True

        def commit(self, repository: str, body: bytes) -> None:
            """Write the files of a commit, one JSON object per line."""
            names = []
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    continue
                names.append(value["path"])
                if line["key"] == "deletedFile":
                    (hub.repositories[repository] / value["path"]).unlink()
                    continue
                large = line["key"] == "lfsFile"
                content = hub.large[value["oid"]] if large else base64.b64decode(value["content"])
                file = hub.repositories[repository] / value["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            hub.commits.append(names)
            url = f"http://{self.headers['Host']}/{repository}/commit/{COMMIT}"
            self.reply_json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

        def api(self, path: str, body: bytes) -> None:
            repository = next((name for name in hub.repositories if path == name or path.startswith(name + "/")), None)
            if repository is None:
                return self.missing("RepoNotFound")
            verb = path.removeprefix(repository).strip("/").split("/")[0]
            entries = [hub.entry(repository, file) for file in hub.files(repository)]
            if verb == "tree":
                return self.reply_json(self.tree(entries, path.partition("/tree/")[2].partition("/")[2]))
            if verb == "paths-info":
                requested = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
                return self.reply_json([entry for entry in entries if entry["path"] in requested])
            siblings = [{"rfilename": entry["path"]} for entry in entries]
            name = repository.removeprefix("datasets/")
            facts = {"id": name, "sha": COMMIT, "siblings": siblings, "private": name in hub.private, "disabled": False}
            return self.reply_json({**facts, "gated": False, "downloads": 0, "likes": 0, "tags": []})

        def tree(self, entries: list[dict], folder: str) -> list[dict]:
            inside = [entry for entry in entries if entry["path"].startswith(f"{folder}/" if folder else "")]
            if "recursive=true" in self.path.lower():
                return inside
            children = [entry for entry in inside if "/" not in entry["path"].removeprefix(f"{folder}/")]
            subfolders = {str(Path(entry["path"]).parent) for entry in inside if entry not in children}
            return children + [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in subfolders]

        def content(self, repository: str, name: str) -> None:
            if repository not in hub.repositories:
                return self.missing("RepoNotFound")
            file = hub.repositories[repository] / name
            if not file.is_file():
                return self.missing("EntryNotFound")
            entry, content = hub.entry(repository, file), file.read_bytes()
            etag = entry.get("lfs", entry)["oid"]
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content))}
            headers["Accept-Ranges"] = "bytes"
            if name == hub.altered:
                half = len(content) // 2
                content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0] or 0)
            partial = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
            if self.command == "GET":
                hub.sent[name] += 1
                if hub.cuts and len(content) > 10_000:
                    hub.cuts -= 1
                    self.send_response(206 if begin else 200)
                    for key, value in {**headers, **partial, "Content-Length": str(len(content) - begin)}.items():
                        self.send_header(key, value)
                    self.end_headers()
                    self.wfile.write(content[begin : begin + hub.given])
                    self.close_connection = True
                    return None
            return self.reply(content[begin:], 206 if begin else 200, **headers, **partial)

    return Handler


@contextlib.contextmanager
def running(hub: MiniHub) -> Iterator[str]:
    """Serve a hub within the block; yield its address, for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
