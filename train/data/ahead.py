"""Batches made ahead by a thread or by processes. Every wait for one ends: on an error, a stop, or no progress."""

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.multiprocessing

from hear_jepa.errors import CorpusError, HearJepaError

POLL_S = 0.2
END_S = 3.0  # a thread may take to end


class Ahead(Iterator):
    """What `make(turn, turns)` yields in `workers` processes, or in one thread where `workers` is 0, in turns.

    Process `turn` of `turns` makes items turn, turn + turns, …; each keeps up to `count` of them ready. Set
    `stop_requested` to a function, and a wait for the next item ends in StopIteration once it returns True. Raises
    what a process raised, and CorpusError after `timeout_s` seconds without an item or where a process has died.
    """

    def __init__(self, make: Callable[[int, int], Iterator[Any]], workers: int, count: int, timeout_s: float):
        self.stop_requested: Callable[[], bool] = lambda: False
        self._timeout_s, self._turn = timeout_s, 0
        closed = threading.Event()
        if workers:
            # Forking a process in which torch has started threads can hang, so the processes are fresh.
            context = torch.multiprocessing.get_context("spawn")
            self._queues = [context.Queue(count) for _ in range(workers)]
            arguments = [(make, turn, workers, items) for turn, items in enumerate(self._queues)]
            self._workers = [context.Process(target=_process, args=each, daemon=True) for each in arguments]
        else:
            self._queues = [queue.Queue(count)]
            self._workers = [threading.Thread(target=_thread, args=(make, self._queues[0], closed), daemon=True)]
        for worker in self._workers:
            worker.start()
        self.close = weakref.finalize(self, _close, self._workers, self._queues, closed)

    def __next__(self) -> Any:
        items, worker = self._queues[self._turn], self._workers[self._turn]
        item = self._wait(items, worker)
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._turn = (self._turn + 1) % len(self._queues)
        return item

    def _wait(self, items, worker) -> Any:
        deadline = time.monotonic() + self._timeout_s
        while True:
            ended = not worker.is_alive()  # asked before the queue: what it left there is found
            try:
                return items.get(timeout=POLL_S)
            except queue.Empty:
                pass
            except (EOFError, OSError):  # the memory that it shared went with it
                ended = True
            if self.stop_requested():
                raise StopIteration
            if ended:
                self.close()
                raise CorpusError("a loading process has died (killed? out of memory?); try fewer --data.workers")
            if time.monotonic() > deadline:
                self.close()
                raise CorpusError(
                    f"no crops for {self._timeout_s:g} s: --data.source does not answer; mend it and resume, "
                    "or raise --data.timeout-s"
                )


def end_with_parent() -> None:
    """Have this process end when its parent does: one that is killed cannot end its children."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "the main process has none"
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _process(make, turn: int, turns: int, items) -> None:
    # Ctrl-C goes to all processes of a terminal; the run decides what becomes of it. SIGTERM ends a process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(1)
    _fill(make, turn, turns, lambda item: items.put(item) is None)


def _thread(make, items: queue.Queue, closed: threading.Event) -> None:
    def put(item) -> bool:
        while not closed.is_set():
            try:
                items.put(item, timeout=POLL_S)
                return True
            except queue.Full:
                pass
        return False

    _fill(make, 0, 1, put)


def _fill(make, turn: int, turns: int, put: Callable[[Any], bool]) -> None:
    """Put what is made, or what went wrong, until `put` returns False."""
    try:
        for item in make(turn, turns):
            if not put(item):
                return
        put(RuntimeError("the crops have an end"))
    except HearJepaError as error:
        put(error)
    except Exception:
        put(RuntimeError(f"a loading process failed:\n{traceback.format_exc()}"))


def _close(workers: list, queues: list, closed: threading.Event) -> None:
    closed.set()
    for worker, items in zip(workers, queues, strict=True):
        if not isinstance(worker, threading.Thread):
            worker.terminate()
            continue
        while not items.empty():  # so that a thread that waits for room sees the end at once
            items.get()
        worker.join(timeout=END_S)  # a thread that runs while the interpreter ends may crash it
