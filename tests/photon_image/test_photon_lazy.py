"""Stand-ins for modules that are hardly ever used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lazy

SOURCES = {
    "lib/plain.py": b"",
    "lib/rare.py": b"print('rare is loaded')\nVALUE = [1]\ndef both(): return VALUE\n",
    "lib/pack/__init__.py": b"",
    "lib/pack/rare.py": b"from pack import other\nprint('pack.rare is loaded')\nVALUE = other.VALUE\n",
    "lib/pack/other.py": b"VALUE = 2\n",
}


def run(tmp_path: Path, program: str) -> str:
    for path, source in lazy.with_stand_ins(SOURCES, frozenset({"lib/rare.py", "lib/pack/rare.py"})).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(source)
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'lib')!r})\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "import rare, pack.rare\nfrom pack import rare as another\nimport rare") == ""


def test_using_loads_once_and_gives_the_real_thing(tmp_path: Path) -> None:
    program = "import rare\nprint(rare.VALUE)\nrare.VALUE.append(2)\nprint(rare.both(), hasattr(rare, 'no'))"
    assert run(tmp_path, program) == "rare is loaded\n[1]\n[1, 2] False\n"


def test_names_can_be_taken_from_it(tmp_path: Path) -> None:
    assert run(tmp_path, "from pack.rare import VALUE\nprint(VALUE)") == "pack.rare is loaded\n2\n"


def test_everything_else_is_as_it_was() -> None:
    made = lazy.with_stand_ins(SOURCES, frozenset({"lib/rare.py"}))
    assert {path: made[path] for path in SOURCES if path != "lib/rare.py"}.items() <= SOURCES.items()
    assert made["lib/_whole_rare.py"] == SOURCES["lib/rare.py"]
