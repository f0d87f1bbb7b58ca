"""Tokens a second of 1, 4 and 16 clients: `rlhf-kit serve`, `transformers serve`, and `generate` one by one.

python benchmarks/serving.py --dtype bfloat16 float32 --json runs/serving.json     some minutes a system and type

GPT-2 small's shape with random weights and a tokenizer of as many tokens; each client streams completions of a fixed
length, one after the other, and the tokens are those that the server says it made. `generate` has no server: its one
line of answers is the same whatever the number of clients. The last line is the time to the first token on the world's
base model. `transformers serve` needs fastapi, python-multipart and what they need, which the kit does not.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import socket
import statistics
import string
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from harness import add_options, facts, foreign_cpu, markdown, say, wait_for_quiet, write_json

OURS, PLAIN = "rlhf-kit serve", "generate, one by one"
PEER, PEER_BATCHED = "transformers serve", "transformers serve, --continuous-batching"
SYSTEMS = (OURS, PEER, PEER_BATCHED, PLAIN)
PROMPT = "The baker went to the market and"


def make_model(folder: Path, dtype: str, layers: int) -> None:
    import torch  # noqa: PLC0415
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415

    from rlhf_kit.stages.pretrain import train_tokenizer  # noqa: PLC0415

    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, eos_token_id=None, bos_token_id=None)
    GPT2LMHeadModel(config).to(getattr(torch, dtype)).save_pretrained(folder)
    # Each of the model's tokens has a text, as GPT-2's have: words of 2 to 6 letters, drawn by chance.
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 6))) for _ in range(60_000)]
    tokenizer = train_tokenizer([" ".join(words)] * 2, config.vocab_size)
    assert len(tokenizer) == config.vocab_size
    tokenizer.save_pretrained(folder)


def command(system: str, folder: str, port: int, dtype: str) -> list[str]:
    if system == OURS:
        return [sys.executable, "-m", "rlhf_kit", "serve", f"m={folder}", "--port", str(port), "--dtype", dtype]
    words = ["-m", "transformers.cli.transformers", "serve", folder, "--port", str(port), "--dtype", dtype]
    return [sys.executable, *words, "--device", "cpu", *(["--continuous-batching"] if system == PEER_BATCHED else [])]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    def __init__(self, system: str, folder: str, dtype: str, threads: int):
        self.system, self.port = system, free_port()
        self.model = "m" if system == OURS else folder
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command(system, folder, self.port, dtype), stdout=self.log, stderr=self.log, env=environment
        )

    def __enter__(self) -> Server:
        end = time.time() + 300
        while time.time() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        self.log.seek(0)
        raise SystemExit(f"{self.system} did not start:\n{self.log.read()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def ask(self, tokens: int) -> tuple[float, int]:
        """Seconds to the first text, and the tokens of the whole answer. Raises SystemExit for a refusal."""
        body: dict = {"model": self.model, "prompt": PROMPT, "max_tokens": tokens, "seed": 1, "stream": True}
        if self.system == OURS:
            body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
        else:
            body["generation_config"] = json.dumps({"do_sample": True, "eos_token_id": None})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        begun = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise SystemExit(f"{self.system}: {reply.status} {reply.read()[:500]!r}")
        first, made = None, 0
        for line in reply:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - begun
                made = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", made)
        connection.close()
        return first or 0.0, made


def by_clients(server: Server, clients: int, tokens: int, answers: int) -> float:
    """Tokens a second of so many clients, each asking for `answers` answers."""
    made: list[int] = []

    def ask() -> None:
        for _ in range(answers):
            made.append(server.ask(tokens)[1])

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(made) / (time.perf_counter() - begun)


def by_generate(folder: str, dtype: str, tokens: int, answers: int, threads: int) -> float:
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    how = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": True, "pad_token_id": 0}
    model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    begun = time.perf_counter()
    for _ in range(answers):
        model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    return answers * tokens / (time.perf_counter() - begun)


def measured(options: argparse.Namespace, system: str, folder: str, dtype: str) -> dict[int, float]:
    if system == PLAIN:
        speed = by_generate(folder, dtype, options.tokens, options.answers, options.threads)
        return dict.fromkeys(options.clients, speed)
    with Server(system, folder, dtype, options.threads) as server:
        server.ask(options.tokens)  # warms up
        return {count: by_clients(server, count, options.tokens, options.answers) for count in options.clients}


def first_token(options: argparse.Namespace) -> list[float]:
    """Seconds, of one client after another, on the world's base model."""
    from rlhf_kit.world import BASE  # noqa: PLC0415

    with Server(OURS, str(BASE), "float32", options.threads) as server:
        server.ask(8)
        return [server.ask(8)[0] for _ in range(20)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, SYSTEMS, "a model of two layers, few tokens")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--answers", type=int, default=2, help="of each client")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.tokens, options.answers, options.clients = 1, 8, 1, [1, 4]
    speeds: dict[tuple[str, str, int], list[float]] = {}
    foreign, began = foreign_cpu(), time.perf_counter()
    with tempfile.TemporaryDirectory() as top:
        for dtype in options.dtype:
            folder = f"{top}/{dtype}"
            make_model(Path(folder), dtype, 2 if options.quick else 12)
            for number in range(options.repeats):
                for system in options.systems:
                    wait_for_quiet(options.patience)
                    say(f"{dtype}, repeat {number + 1}: {system}")
                    for count, speed in measured(options, system, folder, dtype).items():
                        speeds.setdefault((dtype, system, count), []).append(speed)
    seconds = first_token(options)
    busy = (foreign_cpu() - foreign) / (time.perf_counter() - began)
    rows = [
        [dtype, system, *(f"{statistics.median(speeds[dtype, system, count]):.1f}" for count in options.clients)]
        for dtype in options.dtype
        for system in options.systems
    ]
    print(markdown(["type", "tokens a second", *(f"{count} clients" for count in options.clients)], rows))
    print(f"\nFirst token on the world's model: median {statistics.median(seconds) * 1000:.0f} ms, "
          f"longest {max(seconds) * 1000:.0f} ms of {len(seconds)}.")  # fmt: skip
    print(f"{facts(options, ['torch', 'transformers'])}; with servers and clients, others used {busy:.2f} cores")
    if options.json:
        kept = [[*kind, found] for kind, found in speeds.items()]
        write_json(options.json, {**facts(options, ["torch", "transformers"]), "speeds": kept, "first": seconds})


if __name__ == "__main__":
    main()
