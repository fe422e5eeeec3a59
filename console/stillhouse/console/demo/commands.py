"""What the demo does as a person would: commands of its own command line, each in a process."""

import asyncio
import sys
from pathlib import Path

from stillhouse.schemas.errors import PermanentError


async def cli(state: Path, *words: str) -> None:
    """Run a command of `stillhouse`.

    Raises:
        PermanentError: it failed; with what it said.
    """
    await _run("-m", "stillhouse.console", *words, "--state", str(state))


async def noisy_candidate(base: Path, student: Path, out: Path, seed: int) -> Path:
    """Make a student's weights wrong; torch stays out of this process.

    Raises:
        PermanentError: it failed; with what it said.
    """
    given = ("--base", str(base), "--student", str(student), "--out", str(out), "--seed", str(seed))
    await _run("-m", "stillhouse.console.demo.noise", *given)
    return out


async def _run(*words: str) -> None:
    out, error = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    child = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=out, stderr=error)
    said, _ = await child.communicate()
    if child.returncode:
        text = said.decode(errors="replace").strip()[-2000:]
        raise PermanentError(f"exit code {child.returncode}: {text}", where=" ".join(words))
