# Every supported target has a ## line; `make help` prints them.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/setup.stamp
PREFIX ?= $(shell [ $$(id -u) = 0 ] && echo /usr/local || echo $(HOME)/.local)
GUEST_IMAGE := build/photon-image
BUSYBOX := build/images/busybox.tar
TOOLS := build/tools
FUZZ_SECONDS ?= 60
FIGURES := build/bench.json
FIGURES_VSPHERE := build/bench-vsphere.json
# The demonstration VCH of `make run`.
RUN_STATE := build/run

# What the tests and the benchmark drive a VCH with, where the machine does not bring it.
export PATH := $(PATH):$(CURDIR)/$(TOOLS)/bin
# Tests start this project's programs by the hundred, and each worker collects all tests: they are compiled once.
unexport PYTHONDONTWRITEBYTECODE
PARALLEL := -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup proto image run stop test test-fast lint fuzz fmt bench bench-plot bench-vsphere install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install system packages and the virtual environment (once)

$(STAMP): pyproject.toml setup.py $(wildcard proto/*/v1/*.proto) proto/generate.py scripts/setup.sh
	@scripts/setup.sh
	@touch $@

proto: setup ## make the protobuf stubs again
	@$(PYTHON) proto/generate.py

image: setup ## build the guest image (kernel, initramfs, CD) into build/photon-image
	@$(PYTHON) photon-image/build.py --output $(GUEST_IMAGE)

$(BUSYBOX): scripts/busybox_image.py scripts/image_archive.py | $(STAMP)
	@$(PYTHON) scripts/busybox_image.py --output $@

$(TOOLS)/made: scripts/test_tools.py $(wildcard tests/vsphere/vcsim/*) | $(STAMP)
	@$(PYTHON) scripts/test_tools.py
	@touch $@

run: image $(BUSYBOX) ## bring up a VCH on QEMU and run a first container in it
	@$(PYTHON) scripts/first_run.py --state-dir $(RUN_STATE) --guest-image $(GUEST_IMAGE) --image $(BUSYBOX)

stop: ## end the VCH of `make run` together with its containers
	@[ ! -d $(RUN_STATE) ] || [ ! -x $(VENV)/bin/vch ] || $(VENV)/bin/vch down --force --state-dir $(RUN_STATE)

test: image $(BUSYBOX) $(TOOLS)/made ## run every test, real virtual machines included
	@$(VENV)/bin/pytest -q $(PARALLEL) -m "not vm"
	@$(VENV)/bin/pytest -q -m vm
	@VCH_E2E_HYPERVISOR=vsphere $(VENV)/bin/pytest -q -m everywhere tests/e2e

test-fast: setup ## run the tests that are quick and need no virtual machine (a minute)
	@$(VENV)/bin/pytest -q $(PARALLEL) -m "not vm and not slow"

lint: setup ## check style, types and protos (part of the tests too)
	@$(VENV)/bin/pytest -q tests/repo

fuzz: setup ## attack the guest protocol with libFuzzer for FUZZ_SECONDS (60)
	@$(VENV)/bin/pip install --quiet -e '.[fuzz]'
	@mkdir -p build/fuzz/wire
	@$(PYTHON) fuzz/wire.py -max_total_time=$(FUZZ_SECONDS) -timeout=10 -artifact_prefix=build/fuzz/ build/fuzz/wire

fmt: setup ## format the sources and mend what the linter can
	@$(VENV)/bin/ruff check --quiet --fix .
	@$(VENV)/bin/ruff format --quiet .

bench: image $(BUSYBOX) $(TOOLS)/made ## measure, next to dockerd where it is installed (half an hour)
	@$(PYTHON) -m bench --guest-image $(GUEST_IMAGE) --image $(BUSYBOX) --save $(FIGURES)

bench-plot: setup ## draw docs/start-latency.svg from what `make bench` measured last
	@$(PYTHON) -m bench.plot $(FIGURES) docs/start-latency.svg

bench-vsphere: $(BUSYBOX) $(TOOLS)/made ## measure 500 containers on a simulated vCenter (ten minutes)
	@$(PYTHON) -m bench.vsphere --save $(FIGURES_VSPHERE)

install: image ## put the programs on PATH (PREFIX=/usr/local, or ~/.local for a user)
	@mkdir -p $(PREFIX)/bin
	@ln -sfn $(abspath $(VENV)/bin/vch) $(PREFIX)/bin/vch
	@echo "vch is in $(PREFIX)/bin"

clean: stop ## remove what the build made
	@rm -rf build .venv tether/v1 portlayer/v1 *.egg-info
