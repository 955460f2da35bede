"""The endpoint under load: a model's adaptations and predictions, their latencies, and the server's memory before and after.

    python -m benchmarks.endpoint models:/glyphs@champion [seconds] [clients] [requests a second]

The server has a core of its own, the clients the others. Nothing is compared with a peer: no few-shot library serves.
"""

import asyncio
import gc
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import orjson
import psutil

STATES = 64


def body(told: dict[str, object]) -> bytes:
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)


def resident(process: int) -> float:
    """Return a process's memory in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def used(process: int) -> float:
    """Return the seconds of a core that a process has used: other work beside it changes them little, unlike its latencies."""
    return float(sum(psutil.Process(process).cpu_times()[:2]))


def told_of(name: str, seconds: list[float], core: float) -> None:
    """Print latencies, and the server's own time a request, of the `core` seconds that it used for them."""
    cut = statistics.quantiles(seconds, n=100)
    spread = f"p50 {1e3 * cut[49]:6.2f} ms   p99 {1e3 * cut[98]:6.2f} ms   most {1e3 * max(seconds):7.2f} ms"
    print(f"{name:<42} {len(seconds):>8,} requests   {spread}   of the core {1e3 * core / len(seconds):5.2f} ms a request", flush=True)


async def ready(client: httpx.AsyncClient) -> dict[str, object]:
    for _ in range(600):
        try:
            return dict((await client.get("/model")).json())
        except httpx.ConnectError:
            await asyncio.sleep(0.1)
    raise SystemExit("the server did not come up")


async def alone(client: httpx.AsyncClient, process: int, shape: list[int], random: np.random.Generator) -> list[bytes]:
    """Time one request after the other; return predictions by id for the load that follows."""
    adapting, asking, before = [], [], used(process)
    query = random.integers(0, 256, (1, *shape), dtype=np.uint8)
    for _ in range(STATES * 4):
        support = {"support_x": random.integers(0, 256, (25, *shape), dtype=np.uint8), "support_y": np.repeat(np.arange(5), 5)}
        sent, begin = body(support | {"query_x": query}), time.perf_counter()
        name = (await client.post("/predict", content=sent)).json()["id"]
        adapting.append(time.perf_counter() - begin)
        asking.append(body({"id": name, "query_x": query}))
    told_of("adapt 5-way 5-shot and predict one query", adapting, used(process) - before)
    seconds, before = [], used(process)
    for sent in asking * 4:
        begin = time.perf_counter()
        answer = await client.post("/predict", content=sent)
        seconds.append(time.perf_counter() - begin)
        assert answer.status_code == 200
    told_of("predict one query by id", seconds, used(process) - before)
    return asking


async def load(client: httpx.AsyncClient, process: int, asking: list[bytes], clients: int, rate: float, seconds: float) -> None:
    """Let clients send predictions by id, each at its own times, `rate` a second together."""
    taken: list[float] = []
    failed = 0
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        nonlocal failed
        due = time.perf_counter() + number / rate
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            begin = time.perf_counter()
            answer = await client.post("/predict", content=asking[int(due * 1e6) % len(asking)])
            taken.append(time.perf_counter() - begin)
            failed += answer.status_code != 200
            due += clients / rate

    begin, before = time.perf_counter(), used(process)
    await asyncio.gather(*(one(i) for i in range(clients)))
    told_of(f"{clients} clients, {len(taken) / (time.perf_counter() - begin):.0f} requests a second", taken, used(process) - before)
    print(f"answers that were no 200: {failed}", flush=True)


async def measure(url: str, process: int, seconds: float, clients: int, rate: float) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=httpx.Limits(max_connections=clients)) as client:
        told = await ready(client)
        print(f"{told['model']}: {told['learner']}, {told['parameters']:,} parameters; server on one core", flush=True)
        asking = await alone(client, process, told["input"]["shape"], np.random.default_rng(0))  # type: ignore[index]
        before = resident(process)
        await load(client, process, asking, clients, rate, seconds)
        print(f"memory of the server: {before:.0f} MB before, {resident(process):.0f} MB after; {(await client.get('/health')).json()}", flush=True)


def main(model: str = "models:/glyphs@champion", seconds: str = "300", clients: str = "32", rate: str = "300") -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gc.freeze()  # or one of the latencies is a collection of the clients' garbage
    cores = sorted(os.sched_getaffinity(0))
    server = subprocess.Popen([sys.executable, "-m", "flows.endpoint", f"model={model}", f"serving.port={port}"], start_new_session=True)
    try:
        os.sched_setaffinity(server.pid, cores[:1])
        os.sched_setaffinity(0, cores[1:] or cores)
        asyncio.run(measure(f"http://127.0.0.1:{port}", server.pid, float(seconds), int(clients), float(rate)))
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main(*sys.argv[1:])
