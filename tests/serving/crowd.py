"""Many labelers at once on a server of its own, which may be killed: no decision that was acknowledged is lost.

python tests/serving/crowd.py load [--store URL] [--labelers 50] [--seconds 60] [--assert-p95]
python tests/serving/crowd.py kills [--store URL] [--kills 20] [--seed 0]

Each labeler looks at a list for one to three seconds before it decides. `load` fails on an error, and where the
store's events are not exactly those that were acknowledged; with --assert-p95 also on a p95 of all requests of 200 ms
or more. `kills` sends SIGKILL to the server at random moments and starts it again; labelers send what was not
acknowledged again, as the page does, and it fails where an acknowledged decision is missing or one is kept twice.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving.conftest import Client  # noqa: E402
from stores import new_name  # noqa: E402

from rlhf_kit.data.labels import schema  # noqa: E402
from rlhf_kit.data.labels.store import Answer, Store, open_store  # noqa: E402
from rlhf_kit.feedback.assignment import Policy, set_policy  # noqa: E402

LISTS = 2000
SLOW = 0.2  # seconds


@dataclass
class Log:
    """What the labelers saw. `sent`: ids of decisions by which any request was made."""

    times: list[float] = field(default_factory=list)
    errors: Counter = field(default_factory=Counter)
    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    ready: list[float] = field(default_factory=list)


class Server:
    """`rlhf-kit ui` as a process, on a port that stays the same."""

    def __init__(self, store: str, log: Log):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.store, self.log, self.process = store, log, None

    def start(self) -> None:
        begun = time.monotonic()
        command = [sys.executable, "-m", "rlhf_kit", "ui", self.store, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while True:
            try:
                Client(self.port).get("/static/icon.svg")
                break
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"the server ended with {self.process.returncode}") from None
                time.sleep(0.02)
        self.log.ready.append(time.monotonic() - begun)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def fill(store: Store) -> None:
    for at in range(LISTS):
        answers = [Answer(f"Answer {k} to {at}: {'words ' * 40}", [{"model": f"model {k}"}]) for k in range(4)]
        store.add_task("ranking", f"Question {at}?", answers)
    set_policy(store, Policy(overlap=0.2))


def labeler(port: int, name: str, log: Log, over: threading.Event, patient: bool) -> None:
    """Look, decide, send; `patient`: send again what was not answered, as the page does."""
    client, draw = Client(port), random.Random(name)

    def timed(act):
        while True:
            begun = time.monotonic()
            try:
                reply = act()
                if reply.status < 500:
                    log.times.append(time.monotonic() - begun)
                    return reply
                fault = str(reply.status)
            except OSError as error:
                fault = type(error).__name__
            if not patient:
                log.errors[fault] += 1
                return None
            if over.is_set():
                return None
            time.sleep(0.1)

    reply = timed(lambda: client.form("/sign-in", name=name))
    while not over.is_set():
        page = timed(lambda: client.get("/rank"))
        if page is None or page.status != 200:
            log.errors[f"page {page and page.status}"] += not patient or page is not None
            break
        if "data-uid" not in page.text:
            break
        decision = client.decision_of(page.text)
        over.wait(draw.uniform(1, 3))
        log.sent.add(decision["uid"])
        reply = timed(lambda decision=decision: client.json("/decisions", decision))
        if reply is not None and reply.status == 200:
            log.acknowledged.add(decision["uid"])
        elif reply is not None:
            log.errors[f"decision {reply.status}: {reply.text[:80]}"] += 1


def crowd(server: Server, log: Log, labelers: int, seconds: float, patient: bool) -> tuple[list, threading.Event]:
    over = threading.Event()
    threads = [
        threading.Thread(target=labeler, args=(server.port, f"labeler {at}", log, over, patient))
        for at in range(labelers)
    ]
    for thread in threads:
        thread.start()
        time.sleep(min(0.05, seconds / labelers / 4))
    return threads, over


def kept(store: Store) -> Counter:
    with store.reading() as connection:
        return Counter(connection.execute(select(schema.events.c.uid)).scalars())


def load(server: Server, store: Store, log: Log, labelers: int, seconds: float, assert_p95: bool) -> list[str]:
    server.start()
    threads, over = crowd(server, log, labelers, seconds, patient=False)
    time.sleep(seconds)
    over.set()
    for thread in threads:
        thread.join()
    server.stop()
    times = sorted(log.times)
    p50, p95 = (times[int(share * len(times))] for share in (0.5, 0.95))
    events = kept(store)
    print(
        f"{labelers} labelers, {seconds:.0f} s: {len(times)} requests, {len(log.acknowledged)} decisions; "
        f"median {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms, longest {1000 * times[-1]:.0f} ms; ready in "
        f"{log.ready[0]:.2f} s; {sum(log.errors.values())} errors {dict(log.errors) or ''}"
    )
    faults = [f"{count} x {name}" for name, count in log.errors.items()]
    faults += [f"p95 is {1000 * p95:.0f} ms"] if assert_p95 and p95 >= SLOW else []
    if events != Counter(log.acknowledged):
        faults.append(f"{len(log.acknowledged)} decisions were acknowledged, and {events.total()} are kept")
    return faults


def kills(server: Server, store: Store, log: Log, labelers: int, count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    server.start()
    threads, over = crowd(server, log, labelers, 10, patient=True)
    for _ in range(count):
        time.sleep(draw.uniform(0.3, 2.5))
        server.kill()
        time.sleep(draw.uniform(0, 0.3))
        server.start()
    time.sleep(3)
    over.set()
    for thread in threads:
        thread.join()
    server.stop()
    events = kept(store)
    lost, twice = log.acknowledged - set(events), [uid for uid, number in events.items() if number > 1]
    unknown = set(events) - log.sent
    print(
        f"{count} kills, {labelers} labelers: {len(log.acknowledged)} decisions acknowledged, {events.total()} kept; "
        f"{len(lost)} lost, {len(twice)} twice, {len(unknown)} that nobody sent; errors {dict(log.errors) or 'none'}"
    )
    faults = [f"{len(them)} {what}" for them, what in ((lost, "lost"), (twice, "twice"), (unknown, "unknown")) if them]
    return faults + [f"{number} x {name}" for name, number in log.errors.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("load", "kills"))
    parser.add_argument("--store", help="a new database; default: a file in a temporary folder")
    parser.add_argument("--labelers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--assert-p95", action="store_true", help="fail where it is 200 ms or more: on a quiet machine"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name = options.store or new_name(Path(folder))
        store, log = open_store(name, create=True), Log()
        fill(store)
        server = Server(name, log)
        if options.mode == "load":
            faults = load(server, store, log, options.labelers, options.seconds, options.assert_p95)
        else:
            faults = kills(server, store, log, min(options.labelers, 12), options.kills, options.seed)
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
