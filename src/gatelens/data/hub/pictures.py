"""Pictures by address, kept on disk: some tables on the hub name their pictures instead of holding them."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from gatelens.errors import DataError

TRIES = 3
SECONDS = 30


def kept_in() -> Path:
    """Where fetched pictures are kept: beside what the hub's own library keeps (``HF_HOME``)."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "gatelens" / "pictures"


def fetched(address: str) -> Path:
    """The file of the picture at an address, fetched when it is not there yet.

    Raises:
        ValueError: the server answers that it does not have it: the row is bad.
        DataError: the server cannot be reached, or the disk refuses: no fault of the row, so never skipped.
    """
    file = kept_in() / hashlib.sha256(address.encode()).hexdigest()[:32]
    if file.is_file():
        return file
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        content = _content(address)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(file)
    except urllib.error.HTTPError as error:
        raise ValueError(f"the picture {address} is not there ({error.code} {error.reason})") from error
    except OSError as error:  # URLError, timeouts, and the disk
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the picture {address} cannot be fetched ({why}); connect, or put the pictures beside the table"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return file


def _content(address: str) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": "gatelens"})
    tries = 1
    while True:
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError:
            raise  # the server has answered; asking again changes nothing
        except OSError:
            if tries == TRIES:
                raise
            tries += 1
