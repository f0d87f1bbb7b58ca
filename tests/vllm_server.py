"""A server with vLLM's schema and a transformers model behind it, which can be told to do what real servers do wrong.

It samples from the model that it holds, reads weights in place as vLLM 0.32 does (a tied head only by its own name),
keeps prefixes, takes adapters, pauses. `faults` is a set of words:

old head, old weights    what of a hand-over it leaves out
stale cache              it says that it forgot its prefixes, and did not
raw log-probs            it tells those of temperature 1
wrong temperature        it draws and tells at 1.3 times the temperature
top-k                    it draws from the nine likeliest tokens
dead, slow, broken       at its next completion it ends, answers nothing more, or fails; stuck: it answers nothing
"""

import copy
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import torch
from peft import PeftModel
from safetensors.torch import load_file


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class FakeVLLM(ThreadingHTTPServer):
    """Serves a copy of `model`. `with FakeVLLM(model) as server: server.url`."""

    daemon_threads = True

    def __init__(self, model, *faults, adapters=False, context=128, logprobs="processed_logprobs"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = copy.deepcopy(model).eval()
        self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.detach().clone())  # as after a reload
        self.faults, self.takes_adapters, self.context, self.logprobs = set(faults), adapters, context, logprobs
        self.adapters, self.prefixes = {}, {}
        self.calls, self.bodies, self.is_paused = [], [], False
        self.worker, self.ending = (
            ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)),
            threading.Event(),
        )

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.shutdown()
        self.server_close()
        self.worker.shutdown()

    def handle_error(self, request, client_address):
        pass  # a client that has gone

    # --- paths ------------------------------------------------------------------------------------------------------

    def answer(self, method, path, body, key):
        self.calls.append(f"{method} {path}")
        samples, faults = path == "/v1/completions", self.faults
        if "dead" in faults and samples or "dead at hand-over" in faults and "rpc" in path:
            faults.add("gone")
        if "slow" in faults and samples or "stuck" in faults or "slow prompt" in faults and body["prompt"] == [1, 1]:
            self.ending.wait()
        if "gone" in faults:
            raise ConnectionError
        if "key" in faults and path.startswith("/v1") and key != "Bearer secret":
            raise Refused(401, "Unauthorized")
        if "broken" in faults and samples:
            raise KeyError("broken")
        name = re.sub(r"\W+", "_", f"{method} {path}".lower()).strip("_")
        is_closed = "lora_adapter" in path and not self.takes_adapters or "no rpc" in faults and "info" in path
        if is_closed or not hasattr(self, name):
            raise Refused(404, "Not Found")
        return self.worker.submit(getattr(self, name), body).result()

    def get_health(self, _):
        return None

    def get_v1_models(self, _):
        cards = [{"id": "base", "max_model_len": self.context, "parent": None}]
        return {"data": cards + [{"id": name, "parent": "base"} for name in self.adapters]}

    def get_server_info(self, _):
        return {"vllm_config": {"model_config": {"max_logprobs": 20, "logprobs_mode": self.logprobs}}}

    def post_pause(self, _):
        self.is_paused = True
        return {"status": "paused"}

    def post_resume(self, _):
        self.is_paused = False
        return {"status": "resumed"}

    def post_reset_prefix_cache(self, _):
        if "busy cache" in self.faults:
            return {"success": False}
        if "stale cache" not in self.faults:
            self.prefixes.clear()
        return {"success": True}

    def post_collective_rpc(self, body):
        assert self.is_paused and body["method"] == "reload_weights"
        weights = {}
        for file in sorted(Path(body["kwargs"]["weights_path"]).glob("*.safetensors")):
            weights |= load_file(file)
        if "old head" in self.faults:
            weights.pop("lm_head.weight")
        if "old weights" not in self.faults:
            self.model.load_state_dict(weights, strict=False)
        return {"results": [None]}

    def post_v1_load_lora_adapter(self, body):
        if "lora_name" not in body:
            raise Refused(422, "Field required")
        if body["lora_name"] in self.adapters:
            raise Refused(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        self.adapters[body["lora_name"]] = PeftModel.from_pretrained(copy.deepcopy(self.model), body["lora_path"])
        return "Success: LoRA adapter added."

    def post_v1_unload_lora_adapter(self, body):
        del self.adapters[body["lora_name"]]
        return "Success: LoRA adapter removed."

    @torch.no_grad()
    def post_v1_completions(self, body):
        self.bodies.append(body)
        if self.is_paused or body["model"] not in ("base", *self.adapters):
            raise Refused(404, f"The model `{body['model']}` does not exist.")
        if max(body["prompt"]) >= self.model.config.vocab_size:
            raise Refused(400, f"Token id {max(body['prompt'])} is out of vocabulary")
        if len(body["prompt"]) + body["max_tokens"] > self.context:
            raise Refused(400, "This model's maximum context length is exceeded.")
        model = self.adapters.get(body["model"], self.model)
        told = None
        if body.get("prompt_logprobs") is not None:
            logits = model(torch.tensor([body["prompt"]])).logits[0].log_softmax(-1)
            rows = zip(logits[:-1], body["prompt"][1:], strict=True)
            told = [None, *({str(token): {"logprob": float(row[token])}} for row, token in rows)]
        tokens, logprobs = self.drawn(model, body)
        reason = "stop" if tokens[-1] in body.get("stop_token_ids", ()) else "length"
        if "silent" in self.faults:
            return {"choices": [{"text": "?", "finish_reason": reason}]}
        choice = {"token_ids": tokens, "finish_reason": reason, "logprobs": {"token_logprobs": logprobs}}
        return {"choices": [choice | {"index": 0, "text": "?", "prompt_logprobs": told}]}

    def drawn(self, model, body):
        """Tokens and their log-probs, through the cache of prefixes."""
        prompt, temperature = body["prompt"], body["temperature"]
        temperature *= 1.3 if "wrong temperature" in self.faults else 1.0
        key = body["model"], body.get("cache_salt"), tuple(prompt[:-1])
        cache = self.prefixes.get(key) if body.get("prompt_logprobs") is None else None
        if cache is None and len(prompt) > 1:
            cache = model(torch.tensor([prompt[:-1]]), use_cache=True).past_key_values
            self.prefixes.setdefault(key, cache)  # a stale one stays
        cache, last = copy.deepcopy(cache), prompt[-1]
        generator = torch.Generator().manual_seed(body["seed"])
        tokens, logprobs = [], []
        while len(tokens) < body["max_tokens"] and not (tokens and last in body.get("stop_token_ids", ())):
            output = model(torch.tensor([[last]]), past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, output.logits[0, -1]
            if "top-k" in self.faults:
                logits = logits.masked_fill(logits < logits.topk(9).values[-1], -torch.inf)
            last = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
            is_raw = "raw log-probs" in self.faults
            tokens.append(last)
            logprobs.append(float((logits / (1.0 if is_raw else temperature)).log_softmax(-1)[last]))
        if "cut off" in self.faults:
            tokens, logprobs = tokens[:1], logprobs[:1]
        return tokens, logprobs


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _handle(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        try:
            status, answer = (
                200,
                self.server.answer(self.command, urlsplit(self.path).path, body, self.headers.get("Authorization")),
            )
        except ConnectionError:
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        except Refused as error:
            status, answer = error.status, {"error": {"message": str(error), "code": error.status}}
        except Exception as error:
            status, answer = 500, {"error": {"message": f"{type(error).__name__}: {error}"}}
        content = b"" if answer is None else json.dumps(answer).encode()
        if isinstance(answer, str):
            content = answer.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _handle
