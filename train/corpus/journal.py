"""The corpus as it grows: shards, and a journal from which a run that was killed goes on as if it had not been.

After every source file one line is added to the journal: the clips written, what was skipped, and how far each domain's
shards had come. Whatever the shards hold beyond the last whole line is cut off at the next start.
"""

import json
import logging
import os
from collections import defaultdict
from pathlib import Path

from hear_jepa.disk import file_sha256
from hear_jepa.errors import CorpusError
from hear_jepa.files.audio import SAMPLE_RATE
from hear_jepa.train.corpus.clips import Skipped
from hear_jepa.train.data.manifest import Manifest, Shard
from hear_jepa.train.data.shards import ShardWriter

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"


class Corpus:
    """The shards in `folder`, opened for adding files in a fixed order; `digest` names the input they are made of."""

    def __init__(self, folder: Path, digest: str, shard_bytes: int):
        self._folder, self._digest, self._shard_bytes = folder, digest, shard_bytes
        self._writers: dict[str, ShardWriter] = {}
        self._first_path: dict[str, str] = {}  # key of a clip: the file that had it first
        self._records: list[dict] = []
        self._samples = 0
        self.skipped_count = 0
        lines = self._read_journal()
        self._restore(lines)
        partial = folder / (JOURNAL + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in [{"input_sha256": digest}, *lines]))
        os.replace(partial, folder / JOURNAL)
        self._journal = open(folder / JOURNAL, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)

    @property
    def files_done(self) -> int:
        """Source files that need no more work."""
        return len(self._records)

    @property
    def hours(self) -> float:
        """Hours of sound written so far."""
        return self._samples / SAMPLE_RATE / 3600

    def add_file(self, file, items: list) -> None:
        """Write the clips among `items` (EncodedClip or Skipped) of one SourceFile, except for duplicates."""
        origin = file.origin
        record = {"clips": [], "skipped": []}
        for item in items:
            if isinstance(item, Skipped):
                record["skipped"].append({"path": item.path, "reason": item.reason})
            elif item.key in self._first_path:
                reason = f"duplicate of {self._first_path[item.key]}"
                record["skipped"].append({"path": f"{file.name} from {item.start_s:g} s", "reason": reason})
            else:
                self._first_path[item.key] = file.name
                description = {
                    "domain": origin.domain,
                    "source": origin.source,
                    "licence": origin.licence,
                    "path": file.name,
                    "start_s": item.start_s,
                    "duration_s": item.samples / SAMPLE_RATE,
                }
                shard = self._writer(origin.domain).add(item.key, item.flac, description)
                record["clips"].append([item.key, shard, item.samples])
        record |= {"path": file.name, "domain": origin.domain, "source": origin.source, "licence": origin.licence}
        record["positions"] = {domain: writer.position for domain, writer in self._writers.items()}
        self._write_line(record)
        self._remember(record)

    def finish(self, left_out: list[Skipped]) -> Manifest:
        """Complete the shards, write the manifest, and drop the journal."""
        if not self._first_path:
            reasons = sorted({item["reason"] for record in self._records for item in record["skipped"]})
            raise CorpusError(f"no usable audio: all {self.files_done} files were skipped ({'; '.join(reasons[:3])})")
        for writer in self._writers.values():
            writer.finish_shard()
        manifest = self._manifest()
        manifest.skipped += [{"path": item.path, "reason": item.reason} for item in left_out]
        manifest.write(self._folder)
        self.close()
        (self._folder / JOURNAL).unlink()
        return manifest

    def close(self) -> None:
        """Close all files as they are."""
        self._journal.close()
        for writer in self._writers.values():
            writer.close()

    def _writer(self, domain: str) -> ShardWriter:
        if domain not in self._writers:
            self._writers[domain] = ShardWriter(self._folder, domain, self._shard_bytes)
            self._writers[domain].rewind([0, 0])
        return self._writers[domain]

    def _write_line(self, line: dict) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()

    def _remember(self, record: dict) -> None:
        self._records.append(record)
        self._samples += sum(clip[2] for clip in record["clips"])
        self.skipped_count += len(record["skipped"])

    def _read_journal(self) -> list[dict]:
        """The records of an earlier, unfinished run over the same input, as far as they are whole."""
        path = self._folder / JOURNAL
        if not path.exists():
            if foreign := next(self._folder.glob("*.tar*"), None):
                raise CorpusError(f"{foreign} is in the way: choose another --out, or delete what is in {self._folder}")
            return []
        lines = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break  # the line that the kill cut short
        if not lines or lines[0] != {"input_sha256": self._digest}:
            log.warning("%s: the input or the settings have changed since it was begun; starting over", self._folder)
            return []
        return lines[1:]

    def _restore(self, records: list[dict]) -> None:
        positions: dict[str, list[int]] = {}
        for record in records:
            self._remember(record)
            self._first_path.update({clip[0]: record["path"] for clip in record["clips"]})
            positions |= record["positions"]
        for path in self._folder.glob("*-??????.tar*"):
            positions.setdefault(path.name.rpartition("-")[0], [0, 0])  # a domain begun after the last whole line
        for domain, position in positions.items():
            writer = ShardWriter(self._folder, domain, self._shard_bytes)
            writer.rewind(position)
            self._writers[domain] = writer

    def _manifest(self) -> Manifest:
        manifest = Manifest(SAMPLE_RATE, input_sha256=self._digest)
        shards: dict[str, dict] = {}
        licences: dict[str, dict[str, None]] = defaultdict(dict)  # in the order met; one may itself hold a " | "
        for record in self._records:
            domain = record["domain"]
            source = manifest.sources.setdefault(record["source"], {"licence": "", "domains": {}})
            licences[record["source"]].setdefault(record["licence"])
            for _, shard, samples in record["clips"]:
                shards.setdefault(shard, {"file": shard, "domain": domain, "clips": 0, "hours": 0.0})
                hours = samples / SAMPLE_RATE / 3600
                for count in (
                    shards[shard],
                    manifest.domains.setdefault(domain, {"clips": 0, "hours": 0.0}),
                    source["domains"].setdefault(domain, {"clips": 0, "hours": 0.0}),
                ):
                    count["clips"] += 1
                    count["hours"] += hours
            manifest.skipped += record["skipped"]
        manifest.shards = [Shard(**shards[name], sha256=file_sha256(self._folder / name)) for name in sorted(shards)]
        for name, found in licences.items():
            manifest.sources[name]["licence"] = " | ".join(found)
        manifest.domains = dict(sorted(manifest.domains.items()))
        manifest.sources = {name: source for name, source in sorted(manifest.sources.items()) if source["domains"]}
        return manifest
