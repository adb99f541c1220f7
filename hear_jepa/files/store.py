"""Embeddings on their way to an output file, in a folder that a killed run leaves whole enough to go on from.

Beside the output `OUT` stands `OUT.parts/` with the embeddings of the finished files, appended to `embeddings.f32`,
and one line in `journal.jsonl` for each finished file, written after its embeddings. What follows the last whole
line after a kill is cut off. `finish` turns the folder into the output and removes it.
"""

import json
import os
import shutil
import tempfile
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy

from hear_jepa.errors import OptionError
from hear_jepa.files.embed import FileEnd, Piece
from hear_jepa.files.formats import format_of, write_output
from hear_jepa.files.records import FileRecord

SPOOL_BYTES = 2**22  # of an unfinished file's embeddings that stay in memory; more go to a temporary file
COPY_BYTES = 2**22


class EmbeddingStore:
    """Where pieces and file ends go. `done` are the paths that need not be embedded again.

    out: the output; settings: everything that the embeddings depend on, JSON-ready, with `kind`, `hop_ms` and
    `embedding_size`. Raises OptionError where another run's output or parts, or a run in progress, is in the way.
    """

    def __init__(self, out: str | Path, settings: dict[str, Any], overwrite: bool = False):
        self.out = Path(out)
        self.settings = settings
        self.parts = self.out.with_name(self.out.name + ".parts")
        self._row_bytes = 4 * settings["embedding_size"]
        format_of(self.out)
        if overwrite:
            shutil.rmtree(self.parts, ignore_errors=True)
        elif self.out.exists() and not self.parts.exists():
            raise OptionError(f"{self.out} exists already: choose another --out, or give --overwrite to replace it")
        self.parts.mkdir(parents=True, exist_ok=True)
        self._journal = open(self.parts / "journal.jsonl", "ab+")  # noqa: SIM115 (open as long as the store)
        _lock(self._journal, self.out)
        self._check_settings()
        self._data = open(self.parts / "embeddings.f32", "ab+")  # noqa: SIM115
        self._records = self._resume()
        self.duration_s = sum(record.duration_s for record in self._records)  # of the files embedded
        self._open: dict[str, dict[int, Any]] = defaultdict(dict)  # path -> channel -> spooled rows

    @property
    def done(self) -> set[Path]:
        """The files that are finished, with embeddings or an error."""
        return {Path(record.path) for record in self._records}

    @property
    def errors(self) -> dict[str, str]:
        """Reason by path of the files that could not be embedded."""
        return {record.path: record.error for record in self._records if record.error is not None}

    def add(self, piece: Piece) -> None:
        """Keep a piece of an unfinished file."""
        channels = self._open[str(piece.path)]
        if piece.channel not in channels:
            channels[piece.channel] = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=self.parts)  # noqa: SIM115
        channels[piece.channel].write(numpy.ascontiguousarray(piece.embeddings, "<f4").data)

    def end(self, event: FileEnd) -> None:
        """Make a file's embeddings, or its error, permanent."""
        channels = self._open.pop(str(event.path), {})
        rows = []
        for channel in range(event.n_channels):
            start = self._data.tell()
            spooled = channels[channel]
            spooled.seek(0)
            shutil.copyfileobj(spooled, self._data, COPY_BYTES)
            rows.append((start // self._row_bytes, (self._data.tell() - start) // self._row_bytes))
        for spooled in channels.values():
            spooled.close()
        self._data.flush()
        record = FileRecord(str(event.path), event.error, event.duration_s, event.n_samples, rows)
        self._journal.write(json.dumps(asdict(record)).encode() + b"\n")
        self._journal.flush()
        self._records.append(record)
        self.duration_s += record.duration_s

    def finish(self, order: list[Path]) -> None:
        """Write the output, its files in the order given, and remove the parts."""
        self._data.flush()
        position = {str(path): number for number, path in enumerate(order)}
        records = sorted(self._records, key=lambda record: position.get(record.path, len(position)))
        empty = self._data.tell() == 0  # nothing to map
        size = self.settings["embedding_size"]
        data = numpy.zeros((0, size), "<f4") if empty else numpy.memmap(self._data.name, "<f4", "r").reshape(-1, size)
        write_output(self.out, records, data, self.settings)
        self.close()
        shutil.rmtree(self.parts)

    def close(self) -> None:
        """Release the files; the parts stay, to be gone on from."""
        self._journal.close()
        self._data.close()

    def _check_settings(self) -> None:
        path = self.parts / "settings.json"
        wanted = json.loads(json.dumps(self.settings))
        found = None
        if path.exists():
            with suppress(json.JSONDecodeError):  # killed while it was written: then nothing followed
                found = json.loads(path.read_text())
        if found is None:
            path.write_text(json.dumps(wanted))
        elif found != wanted:
            other = ", ".join(sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)))
            raise OptionError(
                f"{self.parts} holds an unfinished run with other settings ({other}): "
                "finish that one first, choose another --out, or give --overwrite to drop it"
            )

    def _resume(self) -> list[FileRecord]:
        """Read the journal up to the first line that is not whole, or whose embeddings are not; cut off the rest."""
        records, journal_end, data_end = [], 0, 0
        available = self._data.seek(0, os.SEEK_END)
        self._journal.seek(0)
        for line in self._journal:
            try:
                record = FileRecord(**json.loads(line))
            except (ValueError, TypeError):
                break
            end = max((start + count for start, count in record.rows), default=0) * self._row_bytes
            if not line.endswith(b"\n") or end > available:
                break
            records.append(record)
            journal_end += len(line)
            data_end = max(data_end, end)
        self._journal.truncate(journal_end)
        self._data.truncate(data_end)
        self._journal.seek(0, os.SEEK_END)
        self._data.seek(0, os.SEEK_END)
        for left in self.parts.glob("tmp*"):  # spooled by the run that was killed, where the system names them
            left.unlink()
        return records


def _lock(file: Any, out: Path) -> None:
    """Refuse a second run on the same output; the system lets go of the lock when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows, where nothing guards against it
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OptionError(f"another run is writing {out}: wait for it, or choose another --out") from error
