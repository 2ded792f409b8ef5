"""Chunks of work on processes of this machine or on a Dask cluster, with bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ecdlib.errors import EcdError

Result = TypeVar("Result")


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
        EcdError: no answer from the scheduler.
    """
    import dask
    from distributed import Client, LocalCluster, as_completed

    if workers == 1 and scheduler is None:
        yield from (work(chunk, *arguments) for chunk in chunks)
        return
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    dask.config.set(
        {"distributed.admin.large-graph-warning-threshold": "1GB", "distributed.nanny.pre-spawn-environ": threads}
    )
    cluster = None
    if scheduler is None:
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
    try:
        client = Client(cluster if cluster is not None else scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise EcdError(
            scheduler, "no Dask scheduler answers there", "Start one with `dask scheduler`, or leave the option out."
        ) from error
    try:
        waiting = iter(chunks)
        window = max(3 * len(client.scheduler_info(n_workers=-1)["workers"]), 3)
        running = as_completed(
            [client.submit(work, c, *arguments, pure=False) for _, c in zip(range(window), waiting, strict=False)]
        )
        for future in running:
            yield future.result()
            future.release()
            for chunk in waiting:
                running.add(client.submit(work, chunk, *arguments, pure=False))
                break
    finally:
        client.close()
        if cluster is not None:
            cluster.close()
