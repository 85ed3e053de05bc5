# Two commands: `make demo` shows what conditioning buys, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest
# accelerate gives each CPU process one thread unless told otherwise.
THREADS := $(shell $(PYTHON) -c "import os; print(os.cpu_count())")
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
  --num_cpu_threads_per_process $(THREADS)
TRAIN := $(LAUNCH) train_hf.py recipes/mini-demo.yaml --resume_from_checkpoint auto
SHIPPED := runs/mini/mini-clip/results.json runs/mini/mini-condvit/results.json
TRAINED := runs/mini/none/results.json runs/mini/category/results.json

# The environment of `prepare_lrvsf.py download`, which the tests use where it stands.
export LRVSF_IMG2DATASET ?= $(CURDIR)/.venv-img2dataset

.PHONY: demo shown app leaderboard test test-app test-oldest ray databases mteb reliability img2dataset lock clean
.SECONDARY:

# torch comes last: all that it shares with others then stands, under its hash (see tools/lock.py).
.venv/ready .venv-app/ready: .venv%/ready: requirements%.lock constraints%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --require-hashes --no-deps -r $<
	$(@D)/bin/pip install --quiet -c $(word 2,$^) torch
	$(@D)/bin/pip check
	touch $@

# After a change of a requirements file.
lock: .venv-lock/ready
	$(PYTHON) tools/lock.py .venv-lock/bin/uv

.venv-lock/ready:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet "uv>=0.9"
	touch $@

# Always asked, written only when they draw: what stands on older drawings is made again.
data/mini/test/manifest.json: .venv/ready FORCE
	$(BIN)/python prepare_lrvsf.py mini data/mini --only test

data/mini/mini.json: data/mini/test/manifest.json FORCE
	$(BIN)/python prepare_lrvsf.py mini data/mini

FORCE:

runs/mini/category/model.safetensors: data/mini/mini.json
	$(TRAIN) --condition category --output_dir $(@D)

runs/mini/none/model.safetensors: data/mini/mini.json
	$(TRAIN) --condition none --output_dir $(@D)

# What stands on another model or other data is refused, and these rules run when either has changed.
runs/mini/category/results.json: runs/mini/category/model.safetensors
	rm -rf $(@D)/embeds
	$(LAUNCH) evaluate_lrvsf.py --model $(@D) --data_root data/mini/test --output_dir $(@D)

runs/mini/none/results.json: runs/mini/none/model.safetensors
	rm -rf $(@D)/embeds
	$(LAUNCH) evaluate_lrvsf.py --model $(@D) --data_root data/mini/test --output_dir $(@D)

runs/mini/mini-%/results.json: assets/mini-%/model.safetensors data/mini/test/manifest.json
	rm -rf $(@D)/embeds
	$(LAUNCH) evaluate_lrvsf.py --model $(<D) --data_root data/mini/test --output_dir $(@D)

# What is shipped is shown first: it needs the test set and no training.
shown: $(SHIPPED)
	@echo
	@$(BIN)/python evaluate_lrvsf.py compare "Mini CLIP=runs/mini/mini-clip" "Mini CondViT=runs/mini/mini-condvit"

demo: shown $(TRAINED)
	@echo
	@$(BIN)/python evaluate_lrvsf.py compare --plots runs/mini \
	  "Mini CLIP=runs/mini/mini-clip" "demo, none=runs/mini/none" \
	  "demo, category=runs/mini/category" "Mini CondViT=runs/mini/mini-condvit"
	@echo
	@echo "plots:   runs/mini/recall.png  categories.png  ranks.png"
	@echo "models:  runs/mini/category/  runs/mini/none/  (each with its results.json)"

# A page to search a catalog: Mini's shop by the Mini model on first use, then at once. make app CATALOG=... for another.
CATALOG := runs/shop/catalog
app: .venv-app/ready $(if $(filter runs/shop/catalog,$(CATALOG)),runs/shop/catalog/CURRENT)
	.venv-app/bin/python spaces/demo/app.py $(CATALOG) $(if $(filter runs/shop/catalog,$(CATALOG)),--examples data/shop/scenes)

data/shop/scenes.json: .venv-app/ready
	.venv-app/bin/python prepare_lrvsf.py mini_shop data/shop

runs/shop/catalog/CURRENT: data/shop/scenes.json assets/mini-condvit/model.safetensors
	.venv-app/bin/python search_catalog.py index assets/mini-condvit data/shop/items.parquet runs/shop/catalog --switch

# The leaderboard as a page of this machine: the Hub's models and, besides, folders: make leaderboard FOLDERS="runs"
leaderboard: .venv-app/ready
	.venv-app/bin/python spaces/leaderboard/app.py $(FOLDERS)

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# The pages in a real browser, Debian's chromium, and ONNX; pytest says what it skips without a browser or npm.
test-app: .venv-app/ready spaces/browser/node_modules/.package-lock.json
	.venv-app/bin/python -m pytest -rs tests/spaces tests/hub/graphs

# ONNX Runtime for the page in the browser, by its hash, where there is npm.
spaces/browser/node_modules/.package-lock.json: spaces/browser/package-lock.json
	-command -v npm > /dev/null && npm ci --ignore-scripts --no-audit --no-fund --prefix $(<D) && touch $@

# docs/scale.md: a cluster of this machine, in an environment of its own.
ray: .venv-ray/ready
	.venv-ray/bin/python -m pytest -rs tests/scale

# Each comes on top of what .venv has, in the same versions, but for those that it bounds.
.venv-ray/ready .venv-databases/ready .venv-mteb/ready: .venv-%/ready: requirements.lock constraints.txt requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --require-hashes --no-deps -r $<
	$(@D)/bin/pip install --quiet -c constraints.txt torch -r $(lastword $^)
	$(@D)/bin/pip check
	touch $@

# What `search_catalog.py export` writes, read back by the databases' own clients.
databases: .venv-databases/ready
	.venv-databases/bin/python -m pytest -rs tests/search/exporting

# contrib/mteb, run by mteb's own runner.
mteb: .venv-mteb/ready
	.venv-mteb/bin/python -m pytest -rs tests/contrib

# docs/reliability.md: the faults of which a test shows what happens, those of a cluster among them.
reliability: img2dataset .venv-ray/ready
	.venv-ray/bin/python -m pytest tests -m survives --reliability docs/reliability.md

img2dataset: .venv/ready
	$(BIN)/python -c "from pathlib import Path; from lrvsf.prepare.laion.img2dataset import ensure_environment; \
	  ensure_environment(Path('$(LRVSF_IMG2DATASET)').resolve())"

$(OLDEST)/ready: constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet -c constraints-oldest.txt torch transformers numpy pillow pytest
	touch $@

# First what the Hub files need, alone; then all that training and evaluation need.
test-oldest: $(OLDEST)/ready
	$(OLDEST)/bin/python -m pytest tests/test_configuration_condvit.py tests/test_modeling_condvit.py \
	  tests/test_processing_condvit.py tests/test_text_condvit.py tests/test_contract.py tests/hub/test_published.py
	$(OLDEST)/bin/pip install --quiet -c constraints-oldest.txt -r requirements.txt -r requirements-dev.txt
	$(OLDEST)/bin/python -m pytest tests/test_evaluate_lrvsf.py tests/evaluation/pages/test_attention.py tests/training \
	  --ignore tests/training/test_killed_runs.py tests/data/test_images.py tests/data/test_stream.py

clean:
	rm -rf .venv .venv-app .venv-oldest .venv-ray .venv-databases .venv-mteb .venv-img2dataset .venv-lock build
