"""Debian's prometheus and chromium: those of the machine, or fetched with apt-get."""

import os
import pathlib
import shutil
import subprocess

APT_SECONDS = 300


class Unavailable(Exception):
    """A program is not there and cannot be had."""


def prometheus(folder):
    """Paths of prometheus and promtool.

    Where they are not installed, the package is unpacked below `folder`: that needs no root, and
    starts no service that would stay.
    """
    installed = shutil.which("prometheus"), shutil.which("promtool")
    if all(installed):
        return installed
    unpacked = folder / "prometheus-package"
    programs = tuple(unpacked / "usr/bin" / name for name in ("prometheus", "promtool"))
    if not all(program.exists() for program in programs):
        downloads = folder / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        update_if_root()
        run("apt-get", "download", "prometheus", cwd=downloads)
        for package in downloads.glob("prometheus_*.deb"):
            run("dpkg-deb", "--extract", package, unpacked)
    for program in programs:
        if not program.exists():
            raise Unavailable(f"Debian's package prometheus has no {program.name}")
    return tuple(map(str, programs))


def chromium():
    """Path of chromium. It needs a hundred libraries, so it is installed, which takes root."""
    if found := shutil.which("chromium"):
        return found
    if os.geteuid() != 0:
        raise Unavailable("chromium is not there, and to install it takes root: apt-get install chromium")
    update_if_root()
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core")
    if found := shutil.which("chromium"):
        return found
    raise Unavailable("chromium is not there after apt-get install")


def update_if_root():
    if os.geteuid() == 0:
        run("apt-get", "update", "-qq")


def run(*command, cwd=None):
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    # `apt-get download` as root would warn that its sandbox user may not write there.
    command = [str(word) for word in command]
    if command[0] == "apt-get":
        command[1:1] = ["-o", "APT::Sandbox::User=root"]
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, timeout=APT_SECONDS, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not there") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"'{' '.join(command)}' took more than {APT_SECONDS} s") from None
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1:] or ["it did not say why"]
        raise Unavailable(f"'{' '.join(command)}' failed: {why[0]}")


def version_of(program):
    """The first line of what a program says of its version."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def screenshot(program, url, picture, folder):
    """Opens `url` in a browser without a screen and keeps what it shows. True where there is a picture."""
    picture = pathlib.Path(picture)
    picture.unlink(missing_ok=True)
    subprocess.run(
        [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/chromium",
            "--window-size=1200,1400",
            f"--screenshot={picture}",
            url,
        ],
        timeout=90,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    return picture.exists() and picture.read_bytes().startswith(b"\x89PNG")
