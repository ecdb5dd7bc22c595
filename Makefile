# Every supported target has a ## line; `make help` prints them.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := build/setup.stamp
APT := qemu-system-x86 qemu-utils squashfs-tools e2fsprogs zstd python3-venv
SUDO := $(shell [ $$(id -u) = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help setup proto image test test-fast lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install system packages and the virtual environment (once)

# python3-venv is asked for only where this Python cannot make environments without it.
$(STAMP): pyproject.toml setup.py $(wildcard proto/*/v1/*.proto) proto/generate.py Makefile
	@mkdir -p build
	@missing=(); for package in $(APT); do \
	  if [ $$package = python3-venv ] && python3 -c 'import ensurepip' 2>/dev/null; then continue; fi; \
	  dpkg -s $$package >/dev/null 2>&1 || missing+=($$package); done; \
	if [ $${#missing[@]} -gt 0 ] || ! apt-cache show busybox-static >/dev/null 2>&1; then \
	  echo "setup: system packages $${missing[*]}"; $(SUDO) apt-get update -qq; fi; \
	if [ $${#missing[@]} -gt 0 ]; then \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $${missing[@]} >build/apt.log 2>&1 \
	  || { tail -20 build/apt.log; exit 1; }; fi
	@echo "setup: virtual environment"
	@[ -x $(PYTHON) ] || $$(command -v python3.11 || command -v python3) -m venv $(VENV)
	@$(VENV)/bin/pip install -q --disable-pip-version-check -e '.[dev]'
	@$(PYTHON) proto/generate.py
	@touch $@

proto: setup ## make the protobuf stubs again
	@$(PYTHON) proto/generate.py

image: setup ## build the guest image (kernel and initramfs) into build/photon-image
	@$(PYTHON) photon-image/build.py --output build/photon-image

test: setup ## run every test, real virtual machines included
	@$(VENV)/bin/pytest -q -m "not vm and not slow"
	@$(VENV)/bin/pytest -q -m "vm or slow"

test-fast: setup ## run the tests that need no virtual machine
	@$(VENV)/bin/pytest -q -m "not vm and not slow"

lint: setup ## check style, types and protos (part of the tests too)
	@$(VENV)/bin/pytest -q tests/repo

clean: ## remove what the build made
	@rm -rf build .venv tether/v1 portlayer/v1 *.egg-info
