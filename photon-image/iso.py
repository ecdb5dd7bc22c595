"""The guest image as a CD for machines that cannot be given a kernel directly: bootable by BIOS and by EFI.

ISOLINUX for BIOS, GRUB for EFI: measured under emulation, ISOLINUX reads kernel and initramfs from an AHCI drive in
half a second, GRUB on BIOS in five; on EFI, where the firmware reads, GRUB takes files from the CD itself, while a
unified kernel image would have to stand there twice. Neither shows a menu or waits.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from errors import BuildError

VOLUME = "VCH_GUEST"
# Everything on the CD bears this time: the same inputs give the same bytes.
_EPOCH_S = 1_700_000_000
_EFI_PROGRAM = "EFI/BOOT/BOOTX64.EFI"
_GRUB_MODULES = ("iso9660", "linux", "boot", "search_fs_file", "efi_gop")
_ISOLINUX_FILES = (Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"))
_PACKAGES = "isolinux syslinux-common grub-efi-amd64-bin grub-common mtools xorriso"
_HINT = f"run scripts/setup.sh, or: sudo apt-get install {_PACKAGES}"


@dataclass(frozen=True)
class BootFiles:
    """What the firmware loads: files for the CD's directory, made before a kernel is known."""

    files: dict[str, bytes]
    writer: str

    def digest(self) -> str:
        """Tells apart what comes of other versions of the tools, or another command line."""
        digest = hashlib.sha256(self.writer.encode())
        for name, data in sorted(self.files.items()):
            digest.update(f"{len(name)} {name} {len(data)} ".encode() + data)
        return digest.hexdigest()


def boot_files(command_line: str) -> BootFiles:
    """Boot loaders that start the kernel with `command_line`. Raises BuildError when a tool is missing."""
    files = {"isolinux.cfg": _isolinux_configuration(command_line), "efi.img": _efi_image(command_line)}
    for file in _ISOLINUX_FILES:
        try:
            files[file.name] = file.read_bytes()
        except FileNotFoundError as error:
            raise BuildError(f"{file} is missing", hint=_HINT) from error
    return BootFiles(files, _run("xorriso", "-version").partition("\n")[0])


def make(kernel: bytes, initramfs: bytes, boot: BootFiles) -> bytes:
    """The whole CD."""
    with tempfile.TemporaryDirectory() as scratch:
        tree, iso = Path(scratch, "tree"), Path(scratch, "iso")
        tree.mkdir()
        for name, data in ({"vmlinuz": kernel, "initramfs": initramfs} | boot.files).items():
            (tree / name).write_bytes(data)
            (tree / name).chmod(0o444)
            os.utime(tree / name, (_EPOCH_S, _EPOCH_S))
        os.utime(tree, (_EPOCH_S, _EPOCH_S))
        _run(
            *("xorriso", "-as", "mkisofs", "-quiet", "-output", str(iso)),
            *("-volid", VOLUME, "-rational-rock", "-eltorito-catalog", "boot.cat"),
            *("-eltorito-boot", "isolinux.bin", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"),
            *("-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot"),
            str(tree),
        )
        return iso.read_bytes()


def _isolinux_configuration(command_line: str) -> bytes:
    lines = ("PROMPT 0", "DEFAULT guest", "LABEL guest", "KERNEL vmlinuz", "INITRD initramfs", f"APPEND {command_line}")
    return "".join(f"{line}\n" for line in lines).encode()


def _grub_configuration(command_line: str) -> str:
    """Boots from where GRUB itself came from; should firmware not tell, from the first CD that has a kernel."""
    start = f"linux /vmlinuz {command_line}\ninitrd /initramfs\nboot\n"
    return f"{start}search.file /vmlinuz root\n{start}"


def _efi_image(command_line: str) -> bytes:
    """A file system for the firmware, which knows FAT alone, with GRUB in it."""
    with tempfile.TemporaryDirectory() as scratch:
        configuration, program, image = (Path(scratch, name) for name in ("grub.cfg", "grub.efi", "efi.img"))
        configuration.write_text(_grub_configuration(command_line))
        grub = ("grub-mkimage", "--format", "x86_64-efi", "--prefix", "/boot", "--config", str(configuration))
        _run(*grub, "--output", str(program), *_GRUB_MODULES)
        os.utime(program, (_EPOCH_S, _EPOCH_S))
        _run("mformat", "-C", "-i", str(image), "-f", "720", "-N", "56434847", "::")
        directories = [f"::/{parent}" for parent in reversed(Path(_EFI_PROGRAM).parents) if parent != Path()]
        _run("mmd", "-i", str(image), *directories)
        _run("mcopy", "-m", "-i", str(image), str(program), f"::/{_EFI_PROGRAM}")
        return image.read_bytes()


def _run(*command: str) -> str:
    """Runs a tool, whose clock stands still; returns what it says."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC", "SOURCE_DATE_EPOCH": str(_EPOCH_S)}
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is missing", hint=_HINT) from error
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed: {result.stderr.strip()}", hint=_HINT)
    return result.stdout
