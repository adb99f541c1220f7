"""Embeddings on their way to an output, in a folder that a killed run leaves whole enough to resume from.

Beside the output `OUT` stands `OUT.parts/` with the rows of the finished files, appended to `embeddings.bin`, and one
line in `journal.jsonl` for each finished file, written after its rows. What follows the last whole line after a kill is
cut off. `settings.json` says which command line the folder belongs to. `finish` writes the output, all at once, and
removes the folder. `.OUT.lock` is held meanwhile.
"""

import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from hear_jepa.disk import atomic_path, read_json, remove_abandoned, temporary_folder, write_json
from hear_jepa.errors import OptionError
from hear_jepa.files.embed import FileEnd, Piece
from hear_jepa.files.formats import format_of, write_output
from hear_jepa.files.output import held_by, is_there, locked_output, stamp_of
from hear_jepa.files.records import FileRecord, RowFile, Stored, as_text
from hear_jepa.files.sounds import Sound, is_url

SPOOL_BYTES = 2**22  # of an unfinished file's embeddings that stay in memory; more go to a temporary file
COPY_BYTES = 2**22
ROWS, JOURNAL, SETTINGS = "embeddings.bin", "journal.jsonl", "settings.json"
TRY_AGAIN = -2  # size of a file that failed when the output that is added to was written

Key = tuple[str, tuple[float, float] | None]  # absolute path as text, excerpt


class EmbeddingStore:
    """Where pieces and file ends go; a context manager that holds the output's lock.

    out: the output; inputs: what the command line names, in its words;
    append: add to the output that is there; overwrite: replace it, and drop what an interrupted run of another command
        line left.
    Raises OptionError, before anything is touched, where the output is no output of ours, or is there unbidden, or is
    being written by another process. `start` is to be called before anything is added.
    """

    def __init__(self, out: str | Path, inputs: Iterable[str], append: bool = False, overwrite: bool = False):
        self.out = Path(out).resolve() if Path(out).is_symlink() else Path(out)
        self.parts = self.out.with_name(self.out.name + ".parts")
        self.settings: dict[str, Any] = {}
        self._inputs = [name if is_url(name) else os.path.abspath(name) for name in inputs]
        self._append, self._overwrite = append, overwrite
        if append and overwrite:
            raise OptionError("--append adds to an output, --overwrite replaces it: give one of them")
        format_of(self.out)  # raises for an unknown one
        self._open: dict[Sound, dict[int, Any]] = defaultdict(dict)  # -> channel -> spooled rows
        self._overflown: set[Sound] = set()  # whose rows the type of the output cannot hold
        self._records: dict[Key, FileRecord] = {}
        self._base: Stored | None = None  # a file that is added to; its rows stay where they are until the end
        self._base_records: list[FileRecord] = []
        self._added_to: list[Key] = []  # what the output held before, in order
        self._n_new = 0  # records that it did not hold
        self._files = ExitStack()
        self._files.enter_context(locked_output(self.out))
        try:
            self._check_output()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "EmbeddingStore":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def start(self, settings: dict[str, Any]) -> None:
        """Open the parts: those of an interrupted run of the same command line, or new ones.

        settings: everything that the embeddings depend on, JSON-ready, with `kind`, `hop_ms`, `embedding_size`.
        """
        self.settings = json.loads(json.dumps(settings))
        remove_abandoned(self.out.parent)
        if self._overwrite and self._command_line_of_parts() != self._command_line():
            self._remove_parts()
        if self.parts.exists():
            adds = self._check_command_line()
        else:
            adds = self._append
            self._new_parts()
        if adds and self._before is not None and not self.out.is_dir():
            self._check_settings(self._before.settings, self.out)
            self._base = self._before
        self._before = None
        self._rows = RowFile(self.parts / ROWS, settings["embedding_size"], settings.get("dtype", "float32"))
        self._journal = self._files.enter_context((self.parts / JOURNAL).open("ab+"))
        self._data = self._files.enter_context((self.parts / ROWS).open("ab+"))
        self._resume()

    @property
    def records(self) -> list[FileRecord]:
        """Of every file that is done, or was in the output before."""
        return list(self._records.values())

    def is_done(self, sound: Sound) -> bool:
        """Whether a sound is in here as it is now, by its size and time."""
        record = self._records.get(key_of(sound.path, sound.excerpt))
        return record is not None and (record.size, record.mtime_ns) == sound.stamp()

    def add(self, piece: Piece) -> None:
        """Keep a piece of an unfinished file."""
        channels = self._open[piece.sound]
        if piece.channel not in channels:
            channels[piece.channel] = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(self.parts))  # noqa: SIM115
        rows = numpy.ascontiguousarray(piece.embeddings, self._rows.dtype)
        if not numpy.isfinite(rows).all():
            self._overflown.add(piece.sound)
        channels[piece.channel].write(rows.data)

    def end(self, event: FileEnd) -> FileRecord:
        """Make a file's embeddings, or its error, permanent."""
        channels = self._open.pop(event.sound, {})
        places: list[tuple[int, int]] = []
        error = None if event.error is None else as_text(event.error)
        if event.sound in self._overflown:
            self._overflown.remove(event.sound)
            error = error or f"its embeddings are too large for {self._rows.dtype}"
        for channel in range(0 if error else event.n_channels):
            start = self._data.tell()
            spooled = channels[channel]
            spooled.seek(0)
            shutil.copyfileobj(spooled, self._data, COPY_BYTES)
            places.append((start // self._rows.row_bytes, (self._data.tell() - start) // self._rows.row_bytes))
        for spooled in channels.values():
            spooled.close()
        self._data.flush()
        sound, duration_s = event.sound, 0.0 if error else event.duration_s
        record = FileRecord(
            as_text(sound.path),
            error,
            duration_s,
            places,
            *event.stamp,
            excerpt=sound.excerpt,
            columns=dict(sound.columns),
            warning=event.warning,
        )
        self._journal.write(_line(vars(record)))
        self._journal.flush()
        self._n_new += 1
        self._records[key_of(record.path, record.excerpt)] = record
        return record

    def finish(self, order: Iterable[Sound]) -> list[FileRecord]:
        """Write the output, its sounds in the order given, after those that it held before; remove the parts."""
        self._data.flush()
        if self._append and is_there(self.out) and not self._n_new:
            self._remove_parts()
            return self.records
        wanted = dict.fromkeys(key_of(sound.path, sound.excerpt) for sound in order)
        others = [key for key in self._records if key not in wanted] if self._append else []
        keys = dict.fromkeys([*self._added_to, *others, *wanted])
        records = [self._records[key] for key in keys if key in self._records]
        if stamp_of(self.out) != self._stamp:  # someone else's by now?
            held_by(self.out)
        self._take_rows_of_base()
        write_output(self.out, records, self._rows, self.settings)
        self._remove_parts()
        return records

    def close(self) -> None:
        """Release the files and the lock; the parts stay, to be resumed from."""
        for channels in self._open.values():
            for spooled in channels.values():
                spooled.close()
        self._open.clear()
        self._files.close()

    def _check_output(self) -> None:
        if self.parts.exists() and not _holds_parts(self.parts):
            raise OptionError(f"{self.parts} is not what `hear-jepa embed` leaves: choose another --out")
        self._stamp, self._before = stamp_of(self.out), held_by(self.out)
        if is_there(self.out) and not (self._append or self._overwrite or self.parts.exists()):
            raise OptionError(
                f"{self.out} exists already: choose another --out, add new files to it with --append, or replace it "
                "with --overwrite"
            )

    def _command_line(self) -> dict[str, Any]:
        options = {"append": self._append, "overwrite": self._overwrite}
        return {"settings": self.settings, "inputs": self._inputs, **options}

    def _command_line_of_parts(self) -> dict[str, Any]:
        """Of the one that began the parts; empty where it cannot be read."""
        with suppress(OSError, ValueError):
            return read_json(self.parts / SETTINGS)
        return {}

    def _new_parts(self) -> None:
        """Make the folder, whole or not at all; where an output is added to, with all that it holds."""
        with atomic_path(self.parts) as folder:
            folder.mkdir()
            (folder / SETTINGS).write_text(json.dumps(self._command_line()))
            with open(folder / ROWS, "wb") as data, open(folder / JOURNAL, "wb") as journal:
                # A folder is gone for a moment while it is replaced: until then the parts hold all of it.
                if self._append and self._before is not None and self.out.is_dir():
                    self._check_settings(self._before.settings, self.out)
                    for chunk in self._before.chunks():
                        data.write(numpy.ascontiguousarray(chunk).data)
                    for record in self._before.records:
                        size = record.size if record.error is None else TRY_AGAIN
                        journal.write(_line({**vars(record), "size": size, "before": True}))

    def _check_command_line(self) -> bool:
        """Refuse the parts of another command line. With `append`, further inputs may join them.

        Returns whether the parts are to be added to the output.
        """
        found = self._command_line_of_parts()
        if not {"settings", "inputs", "append"} <= set(found):
            raise OptionError(f"{self.parts} is of an older version or damaged: --overwrite drops it")
        self._check_settings(found["settings"], self.parts)
        if self._append:
            write_json(self.parts / SETTINGS, self._command_line() | {"append": found["append"]})
        elif found["inputs"] != self._inputs or found["append"]:
            raise OptionError(
                f"{self.parts} holds an unfinished run of other inputs ({', '.join(found['inputs'][:3])} …): finish it "
                "with the same command, add these inputs to it with --append, or drop it with --overwrite"
            )
        return found["append"]

    def _check_settings(self, found: dict[str, Any], where: Path) -> None:
        wanted = self.settings
        keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key, wanted.get(key)) != wanted.get(key))
        if keys:
            raise OptionError(
                f"{where} was written with other settings ({', '.join(keys)}): give the same ones, choose another "
                "--out, or drop it with --overwrite"
            )

    def _resume(self) -> None:
        """Read the journal up to the first line that is not whole, or whose rows are not there; cut off the rest."""
        for record in self._base.records if self._base else []:
            record = record if record.error is None else replace(record, size=TRY_AGAIN)
            key = key_of(record.path, record.excerpt)
            self._records[key] = record
            self._base_records.append(record)
            self._added_to.append(key)
        journal_end, data_end = 0, 0
        available = self._data.seek(0, os.SEEK_END)
        self._journal.seek(0)
        for line in self._journal:
            try:
                values = json.loads(line)
                before = values.pop("before", False)
                record = _record(values)
            except (ValueError, TypeError, AttributeError):
                break
            end = max((start + count for start, count in record.rows), default=0) * self._rows.row_bytes
            if not line.endswith(b"\n") or end > available:
                break
            key = key_of(record.path, record.excerpt)
            self._records[key] = record
            self._n_new += not before
            if before:
                self._added_to.append(key)
            journal_end += len(line)
            data_end = max(data_end, end)
        self._journal.truncate(journal_end)
        self._data.truncate(data_end)
        self._journal.seek(0, os.SEEK_END)
        self._data.seek(0, os.SEEK_END)
        for left in self.parts.glob("tmp*"):  # spooled by the run that was killed, where the system names them
            left.unlink()

    def _take_rows_of_base(self) -> None:
        """Copy the rows of the file that is added to behind the new ones; its records say where they are now."""
        if self._base is None:
            return
        start = self._data.seek(0, os.SEEK_END) // self._rows.row_bytes
        for chunk in self._base.chunks():
            self._data.write(numpy.ascontiguousarray(chunk).data)
        self._data.flush()
        for record in self._base_records:
            record.rows[:] = [(start + first, count) for first, count in record.rows]

    def _remove_parts(self) -> None:
        """All at once: a kill meanwhile leaves none that could be taken for a run's."""
        if self.parts.exists():
            with temporary_folder(self.parts) as folder:
                os.rename(self.parts, folder / "parts")


def key_of(path: str | Path, excerpt: tuple[float, float] | None = None) -> Key:
    """What tells one file, or excerpt, from another."""
    return as_text(str(path) if is_url(str(path)) else os.path.abspath(path)), excerpt


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _record(values: dict[str, Any]) -> FileRecord:
    excerpt = values.pop("excerpt")
    return FileRecord(**values, excerpt=None if excerpt is None else tuple(excerpt))


def _holds_parts(folder: Path) -> bool:
    """Whether a folder is one that an interrupted run left, with nothing else in it."""
    known = {ROWS, JOURNAL, SETTINGS, "embeddings.f32"}  # the last: of versions before this one
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {""}
    return all(name in known or name.startswith(("tmp", f".{SETTINGS}.")) for name in names)
