# The two commands of a fresh machine: `make demo` and `make test`. Each makes its own .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-demo test-kills test-browser test-vllm test-postgres test-crowd test-newest test-scale test-plan test-reports check mutants style bench bench-gpu architectures clean

demo: $(INSTALLED)
	$(BIN)/rlhf-kit demo

# The quick suite: WORKERS processes, one thread and some 2 GB of memory each.
WORKERS ?= 2
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --ignore tests/test_demo.py --ignore tests/test_readme_shell.py --ignore-glob 'tests/serving/test_browser*'

# The demo as a user runs it, from the base model to the report, and its promises; the README in a fresh shell.
test-demo: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_demo.py tests/test_readme_shell.py

# SIGKILL at KILLS=40 random moments of every stage and an evaluation, each gone on with to the end of an unbroken run;
# ARGS="--processes 2": of the stages by two processes.
test-kills: $(INSTALLED)
	$(BIN)/python tests/kills.py $(ARGS)

# The pages in Chromium (Debian: chromium, fonts-noto-cjk); SCREENS=docs/screens leaves pictures.
test-browser: $(INSTALLED)
	$(BIN)/python -m pytest tests/serving/test_browser*.py -rs

# LABELERS=50 people at once for SECONDS=60, then KILLS=20 SIGKILLs of the server: nothing that was acknowledged is lost.
LABELERS ?= 50
SECONDS ?= 60
CROWD = --labelers $(LABELERS) --seconds $(SECONDS)
test-crowd: $(INSTALLED)
	$(BIN)/python tests/serving/crowd.py load $(CROWD)
	$(BIN)/python tests/serving/crowd.py kills --kills $(or $(KILLS),20)

# 20 updates of PPO whose rollouts a real vLLM samples, and every fault on it; its own environment takes 3.5 GB.
test-vllm: $(INSTALLED)
	$(BIN)/python tests/vllm_real.py

# The store, assignment and the same crowd on a PostgreSQL of its own (Debian: postgresql).
test-postgres: $(INSTALLED)
	$(BIN)/python tests/postgres.py $(CROWD) --kills $(or $(KILLS),20)

# The quick suite on the newest releases that setup.cfg allows, torch as in constraints.txt, in an environment of its own.
test-newest:
	$(PYTHON) tests/newest.py --write docs/install.md

# What `rlhf-kit plan` says beside the peak memory of six runs: each within a fifth. And the heads of the recipes.
test-plan: $(INSTALLED)
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/plan_vs_measured.py --within 0.2
	$(BIN)/python tests/planning/heads.py

# What TensorBoard, trackio and wandb (offline) hold of a PPO run is metrics.jsonl; their environment takes 1 GB.
test-reports: $(INSTALLED)
	$(BIN)/python tests/reports_real.py

# Every stage, whole and by LoRA, under DDP, FSDP2, ZeRO-2 and ZeRO-3 on CPUs; ARGS="--stages ppo --engines fsdp2" for some.
test-scale: $(INSTALLED)
	$(BIN)/python tests/scale.py $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests/test_structure.py

# Every guarded line, broken once, must turn its test red; ONLY=ppo takes those whose file or test is named so.
mutants: $(INSTALLED)
	$(BIN)/python tests/mutants.py --only "$(ONLY)"

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or later is needed, \
	$(PYTHON) is {v[0]}.{v[1]}. Give another: make PYTHON=python3.11 $(MAKECMDGOALS)" or None)'
	@echo "Installing into .venv; the first time this downloads torch and takes some minutes. 安裝到 .venv，第一次要幾分鐘。"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable ".[dev]" --constraint constraints.txt
	touch $@

# Hours on two quiet cores; the scaling takes 90 minutes of them at most, and --minutes says otherwise.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/ppo_vs_trl.py --json runs/ppo_vs_trl.json
	$(BIN)/python benchmarks/scaling.py --json runs/scaling.json
	$(BIN)/python benchmarks/sft_vs_trl.py --json runs/sft_vs_trl.json
	$(BIN)/python benchmarks/reward_vs_trl.py --json runs/reward_vs_trl.json
	$(BIN)/python benchmarks/coqa_vs_peers.py --json runs/coqa_vs_peers.json
	$(BIN)/python benchmarks/icl_vs_lm_eval.py --json runs/icl_vs_lm_eval.json

# At most ten minutes, with nothing downloaded; without a GPU it says so and ends well.
bench-gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py --json runs/gpu.json

architectures: $(INSTALLED)
	$(BIN)/python benchmarks/architectures.py --minutes 15 --markdown docs/architectures.md

clean:
	rm -rf .venv runs
