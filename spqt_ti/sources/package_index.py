"""Fetches one file of a Python package index, without pip: the simple API (PEP 503 and 691) by urllib.

Follows pip's settings for indexes, links and certificates, from its environment variables and configuration files, so
that a mirror that works for pip works here. Credentials in an index's URL go to that host only and into no message.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import errno
import hashlib
import html.parser
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

DEFAULT_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_MOST_PAGE = 16 << 20
_CHUNK = 1 << 20
_TRIES = 4
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EISDIR)  # of the disk, not of the network
_SECONDS = 30.0


class PackageIndexError(Exception):
    """The file cannot be had; the message says why, without credentials."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that an index lists; `sha256` where the index says it."""

    name: str
    url: str
    sha256: str | None


@dataclass(frozen=True)
class Settings:
    """Where to look: indexes (simple API), then folders and pages with links; a file of certificates."""

    indexes: tuple[str, ...]
    links: tuple[str, ...]
    certificates: str | None

    @classmethod
    def of_pip(cls) -> Settings:
        """pip's, and uv's default index where pip names none."""
        found = _pip_settings()
        index = found.get("index-url") or os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
        indexes = [] if found.get("no-index", "").lower() in ("1", "true", "yes", "on") else [index or DEFAULT_INDEX]
        indexes += found.get("extra-index-url", "").split() if indexes else []
        cert = found.get("cert") or os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
        return cls(tuple(indexes), tuple(found.get("find-links", "").split()), cert)


def find_wheel(settings: Settings, distribution: str, version: str) -> RemoteFile:
    """The wheel of a version that runs anywhere; PackageIndexError with each index's reason where none has it."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    wanted = re.compile(rf"{re.escape(name.replace('-', '_'))}-{re.escape(version)}(-\d\w*)?-py3-none-any\.whl", re.I)
    pages = [*settings.links, *(f"{index.rstrip('/')}/{name}/" for index in settings.indexes)]
    reasons = []
    for page in pages:
        try:
            for file in _listed(page, settings):
                if wanted.fullmatch(file.name):
                    return file
            reasons.append(f"{_shown(page)} does not list {distribution} {version}")
        except (OSError, ValueError) as error:
            reasons.append(f"{_shown(page)}: {_reason(error)}")
    raise PackageIndexError("; ".join(reasons[-2:]) or "pip's settings name no index")


def download(file: RemoteFile, settings: Settings, target: Path, most: int, step: Callable[[int, int], None]) -> None:
    """Put the file at `target`, going on with what an earlier call left there; at most `most` bytes.

    `step` is told the bytes so far and in all (0: unknown). PackageIndexError where the server fails again and again,
    or the SHA-256 that the index names does not fit; `target` is then kept, or removed if it is wrong. OSError where it
    cannot be written.
    """
    for attempt in range(_TRIES):
        try:
            _continue(file, settings, target, most, step)
            break
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise
            given_up = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if given_up or attempt == _TRIES - 1:
                raise PackageIndexError(f"{_shown(file.url)}: {_reason(error)}") from error
            time.sleep(2.0**attempt)
    if file.sha256 and (found := _sha256(target)) != file.sha256:
        target.unlink(missing_ok=True)
        raise PackageIndexError(f"{file.name} has SHA-256 {found}, the index says {file.sha256}")


def _continue(file: RemoteFile, settings: Settings, target: Path, most: int, step: Callable[[int, int], None]) -> None:
    have = target.stat().st_size if target.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = _open(file.url, settings, headers)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: the server has no more than we have
            raise
        return
    with response:
        continues = getattr(response, "status", None) == 206
        total = int(response.headers.get("Content-Length") or 0) + (have if continues else 0)
        have = have if continues else 0
        with open(target, "ab" if continues else "wb") as kept:
            while chunk := response.read(_CHUNK):
                have += len(chunk)
                if have > most:
                    raise ValueError(f"the file is larger than {most:,} bytes")
                kept.write(chunk)
                step(have, total)
    if total and have < total:
        raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")


def _listed(page: str, settings: Settings) -> Iterator[RemoteFile]:
    """The files of a page of an index, or of a folder."""
    folder = _folder(page)
    if folder is not None and not (folder / "index.html").is_file():
        for path in sorted(folder.iterdir()):
            yield RemoteFile(path.name, path.resolve().as_uri(), None)
        return
    url = (folder / "index.html").resolve().as_uri() if folder is not None else page
    with _open(url, settings, {"Accept": _ACCEPT}) as response:
        content, kind = response.read(_MOST_PAGE + 1), response.headers.get("Content-Type", "")
        base = page if folder is not None else response.geturl()
    if len(content) > _MOST_PAGE:
        raise ValueError("the page is too long")
    if "json" in kind:
        entries: Sequence[tuple[Any, ...]] = [
            (e.get("filename"), e.get("url"), (e.get("hashes") or {}).get("sha256")) for e in _files(content)
        ]
    else:
        entries = _anchors(content.decode("utf-8", "replace"))
    for name, link, sha256 in entries:
        if isinstance(name, str) and isinstance(link, str):
            whole = _with_credentials(urllib.parse.urljoin(base, link), page)
            yield RemoteFile(name, whole, sha256 if isinstance(sha256, str) else None)


def _files(content: bytes) -> list[dict[str, Any]]:
    try:
        files = json.loads(content)["files"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not the simple API's JSON") from error
    if not isinstance(files, list):
        raise ValueError("not the simple API's JSON")
    return [entry for entry in files if isinstance(entry, dict)]


class _Anchors(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _anchors(text: str) -> list[tuple[str, str, str | None]]:
    parser = _Anchors()
    parser.feed(text)
    entries = []
    for link in parser.links:
        parts = urllib.parse.urlsplit(link)
        digest = re.fullmatch(r"sha256=([0-9a-f]{64})", parts.fragment)
        name = urllib.parse.unquote(parts.path.rpartition("/")[2])
        entries.append((name, urllib.parse.urldefrag(link)[0], digest[1] if digest else None))
    return entries


def _open(url: str, settings: Settings, headers: dict[str, str]) -> Any:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("https", "http", "file"):
        raise ValueError(f"{parts.scheme or 'no'} URLs are not fetched")
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)), headers=headers)
    request.add_header("User-Agent", "spqt-ti")
    if parts.username:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        # Unredirected: another host must not see them.
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
    if parts.scheme != "https":
        return urllib.request.urlopen(request, timeout=_SECONDS)
    context = ssl.create_default_context(cafile=settings.certificates)
    return urllib.request.urlopen(request, timeout=_SECONDS, context=context)


def _with_credentials(url: str, index: str) -> str:
    """The index's credentials for a file on the same host."""
    file, page = urllib.parse.urlsplit(url), urllib.parse.urlsplit(index)
    if "@" in page.netloc and "@" not in file.netloc and page.netloc.rpartition("@")[2] == file.netloc:
        return urllib.parse.urlunsplit(file._replace(netloc=page.netloc))
    return url


def _folder(page: str) -> Path | None:
    parts = urllib.parse.urlsplit(page)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return Path(page).expanduser() if not parts.scheme or len(parts.scheme) == 1 else None  # C: is a drive


def _shown(url: str) -> str:
    """A URL for messages: no credentials, no query."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else parts.path or url


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split()) or type(error).__name__


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _pip_settings() -> dict[str, str]:
    """Option -> value: configuration files, the user's over the machine's, then environment variables."""
    found: dict[str, str] = {}
    for path in _pip_files():
        parser = configparser.RawConfigParser()
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read(path, encoding="utf-8")
            for section in ("global", "download"):
                if parser.has_section(section):
                    found |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            found[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return found


def _pip_files() -> list[Path]:
    chosen = os.environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    folders = platformdirs.site_config_dir("pip", multipath=True).split(os.pathsep)
    machine = [*(Path(folder) / name for folder in folders), Path("/etc/pip.conf")]
    user = [Path(os.path.expanduser("~")) / ".pip" / name, Path(platformdirs.user_config_dir("pip")) / name]
    return [*machine, *user, Path(sys.prefix) / name, *([Path(chosen)] if chosen else [])]
