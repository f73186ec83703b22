"""An app that tells of its project's secret by a hash, and whoever builds and visits it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import anyio
import httpx

from generator.runner import RunnerTask
from schemas import Job, JobRef
from service.instance import LOCAL_TENANT
from tests.generator.doubles import ScriptedRunner
from tests.service.instances import PATIENCE_S, Running

NAME = "API_TOKEN"
MANIFEST = f"""
[commands]
install = "test -n \\"${NAME}\\""
test = "python3 -c 'import server; server.told()'"
start = "exec python3 server.py"
"""
SERVER = f'''
import hashlib, json, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

def told():
    print("the token is", os.environ["{NAME}"], flush=True)  # as careless apps do
    return hashlib.sha256(os.environ["{NAME}"].encode()).hexdigest()

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        health = json.dumps({{"status": "ok", "build": os.environ["HEADRACE_MARKER"]}})
        body = health if self.path == "/healthz" else f"<!doctype html><p>{{told()}}</p>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8080), Answer).serve_forever()
'''


def app_of(task: RunnerTask) -> Mapping[str, str]:
    return {"headrace.toml": MANIFEST, "server.py": SERVER, "GOAL": task.goal}


def runner(_: object = None) -> ScriptedRunner:
    """Who writes it, in place of `service.wiring.make_runner`."""
    return ScriptedRunner(app=app_of)


async def set_secret(client: httpx.AsyncClient, value: str) -> None:
    answer = await client.put(f"/v1/projects/default/secrets/{NAME}", json={"value": value})
    assert answer.status_code == 204, answer.text


async def built(running: Running, client: httpx.AsyncClient, **request: Any) -> Job:
    """A build, once its stream has ended."""
    accepted = await client.post("/v1/jobs", json={"goal": "what it was told", **request})
    assert accepted.status_code == 202, accepted.text
    return await ended(running, client, accepted.json()["job_id"])


async def ended(running: Running, client: httpx.AsyncClient, job: str) -> Job:
    with anyio.fail_after(PATIENCE_S):
        async with client.stream("GET", f"/v1/jobs/{job}/stream") as response:
            await response.aread()
    return await running.log.handler.load(JobRef(LOCAL_TENANT, job))


async def is_told(job: Job, value: str) -> bool:
    """Whether the app of this job was started with that value."""
    assert job.preview_url is not None, job.error_message
    async with httpx.AsyncClient(trust_env=False, verify=False) as visitor:
        page = (await visitor.get(job.preview_url)).text
    return hashlib.sha256(value.encode()).hexdigest() in page
