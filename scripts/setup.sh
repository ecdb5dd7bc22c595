#!/usr/bin/env bash
# Installs system packages and makes the virtual environment in .venv; what is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(command -v python3.11 || command -v python3 || true)
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "setup: Python 3.11 or later is needed: sudo apt-get install python3.11 python3.11-venv" >&2
  exit 1
fi

packages=(qemu-system-x86 qemu-utils squashfs-tools e2fsprogs debootstrap cpio)
# RPM repositories as a source of the guest image, and what the tests make such repositories with.
packages+=(python3-dnf rpm createrepo-c gpg gpg-agent)
# The guest image as a CD; the firmware is for its tests.
packages+=(isolinux syslinux-common grub-efi-amd64-bin grub-common mtools xorriso ovmf)
# Debian's Python cannot make environments without a package of its own.
"$python" -c 'import ensurepip' 2>/dev/null || packages+=("$(basename "$python")-venv")
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
# The images are made of packages too, for which apt's lists have to be there.
if [ ${#missing[@]} -gt 0 ] || ! apt-cache show busybox-static >/dev/null 2>&1; then
  echo "setup: system packages ${missing[*]:-(lists only)}"
  "${as_root[@]}" apt-get update -qq
fi
if [ ${#missing[@]} -gt 0 ]; then
  mkdir -p build
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >build/apt.log 2>&1 || {
    tail -20 build/apt.log >&2
    exit 1
  }
fi

echo "setup: virtual environment"
[ -x .venv/bin/pip ] || "$python" -m venv .venv
.venv/bin/pip install -q --disable-pip-version-check -e '.[dev]'
.venv/bin/python proto/generate.py
