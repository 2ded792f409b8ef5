"""Work on processes of this machine, with limits if need be, or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from ecdlib.base.errors import EcdError
from ecdlib.base.resources import note_read, recording

Result = TypeVar("Result")
#: Set in the processes started here, and so in theirs: each is one of several and has one core for itself.
WORKER = "ECD_WORKER"
#: What numpy and torch read when they are imported.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def available_cores() -> int:
    """Cores that this process may use; one in a worker, also if it starts other programs."""
    if WORKER in os.environ:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise EcdError(f"--workers {workers}", "at least one is needed", "Omit the option to use one per core.")


def _begin_worker() -> None:
    """One thread of numbers, and an end with the process that started this one, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this one without a traceback
    os.environ.update(ONE_THREAD | {WORKER: "1"})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _recorded(work: Callable[..., Result], *arguments: Any) -> tuple[Result, dict[str, str]]:
    """A result with the bundled files that were read for it."""
    with recording() as reads:
        return work(*arguments), reads


def _noted(answer: tuple[Result, dict[str, str]]) -> Result:
    """The result; this process notes what was read."""
    note_read(answer[1])
    return answer[0]


def in_processes(
    work: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, Result]]:
    """Number of the call and ``work(*call)`` as they complete, on fresh processes with one thread each.

    A single worker or call is this process itself. A script that uses more must guard what it does itself by
    ``if __name__ == "__main__"``.
    """
    _check_workers(workers)
    if workers == 1 or len(calls) < 2:
        yield from ((i, work(*call)) for i, call in enumerate(calls))
        return
    pool = ProcessPoolExecutor(min(workers, len(calls)), multiprocessing.get_context("spawn"), _begin_worker)
    try:
        running = {pool.submit(_recorded, work, *call): i for i, call in enumerate(calls)}
        for future in as_completed(running):
            yield running[future], _noted(future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def map_chunks(
    work: Callable[..., Result], chunks: Iterable[Any], *arguments: Any, scheduler: str | None, workers: int
) -> Iterator[Result]:
    """``work(chunk, *arguments)`` of all chunks as they complete; at most three per worker are under way.

    Args:
        work: a function of a module that the workers can import.
        chunks: taken one after the other as workers become free, so that they can be made on the way.
        scheduler: address of a Dask scheduler; None: processes on this machine, with one thread each.
        workers: local processes; one without a scheduler is this process itself.

    Raises:
        EcdError: no answer from the scheduler, or fewer than one worker.
    """
    _check_workers(workers)
    if workers == 1 and scheduler is None:
        yield from (work(chunk, *arguments) for chunk in chunks)
        return
    if scheduler is None:
        yield from _on_processes(work, chunks, arguments, workers)
        return
    import dask
    from distributed import Client
    from distributed import as_completed as completed

    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise EcdError(
            scheduler, "no Dask scheduler answers there", "Start one with `dask scheduler`, or omit the option."
        ) from error
    try:
        waiting = iter(chunks)
        window = max(3 * len(client.scheduler_info(n_workers=-1)["workers"]), 3)
        first = [client.submit(_recorded, work, c, *arguments, pure=False) for c in islice(waiting, window)]
        running = completed(first)
        for future in running:
            yield _noted(future.result())
            future.release()
            for chunk in waiting:
                running.add(client.submit(_recorded, work, chunk, *arguments, pure=False))
                break
    finally:
        client.close()


def _on_processes(
    work: Callable[..., Result], chunks: Iterable[Any], arguments: tuple[Any, ...], workers: int
) -> Iterator[Result]:
    """:func:`map_chunks` on fresh processes of this machine."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
    waiting = iter(chunks)

    def submitted(n: int) -> set[Future[Any]]:
        return {pool.submit(_recorded, work, chunk, *arguments) for chunk in islice(waiting, n)}

    try:
        running = submitted(3 * workers)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield _noted(future.result())
            running |= submitted(len(done))
    except BrokenProcessPool as error:
        what = "a process has died, probably for lack of memory"
        raise EcdError("workers", what, "Give fewer --workers; the same command resumes.") from error
    finally:
        pool.shutdown(cancel_futures=True)


class Bounded:
    """One call at a time in a process of its own, within limits of time and memory.

    A call that exceeds them is ended with its process; the next one gets a fresh process. Processes are forked from a
    server that has imported ``preload``, so that they start quickly.

    Args:
        seconds: that a call may take.
        memory: bytes that the process may take beyond what it has when it starts.
        preload: modules that the calls need.
    """

    def __init__(self, seconds: float, memory: int, preload: Sequence[str] = ()):
        self.seconds, self.memory = seconds, memory
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._lock, self._ended = threading.Lock(), False
        self._process: Any = None
        self._connection: Any = None

    def __call__(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """``work(*arguments)``; what it raises is raised here.

        Raises:
            TimeoutError: it took too long.
            ChildProcessError: its process has ended: too much memory, a crash, or :meth:`end`.
        """
        with self._lock:
            try:
                self._start()
                self._connection.send((work, arguments))
                if not self._connection.poll(self.seconds):
                    raise TimeoutError(f"took longer than {self.seconds:g} s")
                good, value = self._connection.recv()
            except (EOFError, OSError) as error:
                self._stop()
                if isinstance(error, TimeoutError):
                    raise
                raise ChildProcessError("ended its process") from error
        if good:
            return value
        raise value

    def _start(self) -> None:
        if self._ended:
            raise ChildProcessError("has ended")
        if self._process is None or not self._process.is_alive():
            self._stop()
            self._connection, theirs = multiprocessing.Pipe()
            limits = (theirs, self.seconds, self.memory)
            self._process = self._context.Process(target=_obey, args=limits, daemon=True)
            self._process.start()
            theirs.close()
            if self._ended:  # meanwhile
                self._process.kill()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def end(self) -> None:
        """End the process, at once; a call under way raises ChildProcessError, and so does every later one."""
        self._ended = True
        if (process := self._process) is not None and process.pid is not None:  # None: it is being started
            process.kill()


def _obey(connection: Connection, seconds: float, memory: int) -> None:
    """In a process of its own: answer calls until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(ImportError, OSError, ValueError), open("/proc/self/statm") as f:  # Linux
        import resource

        used = int(f.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    alarm = getattr(signal, "alarm", lambda seconds: 0)  # not on Windows
    while True:
        try:
            work, arguments = connection.recv()
        except EOFError:
            return
        alarm(int(seconds) + 60)  # ends the process if nothing else is left to do so
        try:
            answer = True, work(*arguments)
        except Exception as error:
            answer = False, error
        alarm(0)
        connection.send(answer)
