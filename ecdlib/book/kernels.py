"""Kernels that start at once: forked from a process that has imported what most chapters need.

A chapter's imports and the start of its kernel take as long as its own work. Where processes can be forked (Linux),
all chapters that one process executes share both.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

#: Heavy modules that most chapters import. `ecdlib.book.plotting` is not among them: where matplotlib's pyplot is
#: imported before there is a shell, figures are not shown.
PRELOAD = (
    "ecdlib.cli",
    "ecdlib.book.runs",
    "ecdlib.features.collection",
    "ecdlib.learn.model_file",
    "ase.data.colors",
    "ipykernel.kernelapp",
    "matplotlib.figure",
    "plotly.graph_objects",
    "pymatgen.core",
    "skimage.measure",
    "torch._dynamo",  # torch's optimizers ask for it
)


def can_fork() -> bool:
    """Whether kernels can be forked here: macOS offers it, but its own libraries do not bear it."""
    return sys.platform == "linux"


class ForkedKernelManager(AsyncKernelManager):
    """Starts the Python kernel of this environment as a fork."""

    async def _async_pre_start_kernel(self, **kw: Any) -> tuple[list[str], dict[str, Any]]:
        if self.provisioner is None:
            self.provisioner = _Forked(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
        return await super()._async_pre_start_kernel(**kw)


class _Forked(LocalProvisioner):
    """What runs the kernel."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        process = context.Process(target=_kernel, args=(cmd[cmd.index("-f") :], kwargs["env"], kwargs.get("cwd")))
        process.start()
        assert process.pid is not None
        self.process: Any = _Popen(process)
        self.pid = self.pgid = process.pid
        return self.connection_info


class _Popen:
    """A process of multiprocessing, as jupyter_client handles those of :class:`subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: Any):
        self._process, self.pid = process, process.pid
        self.send_signal, self.terminate, self.kill = self._signal, process.terminate, process.kill

    def poll(self) -> int | None:
        found: int | None = self._process.exitcode
        return found

    def wait(self) -> int | None:
        self._process.join()
        return self.poll()

    def _signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _kernel(arguments: list[str], env: Mapping[str, str], folder: str | None) -> None:
    """In the fork: a kernel, in a session of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    if folder:
        os.chdir(folder)
    import matplotlib as mpl
    from ipykernel.kernelapp import IPKernelApp

    mpl.use("module://matplotlib_inline.backend_inline")  # what a fresh kernel learns from its environment
    # The server ends with the process that started it, and then so does the kernel.
    IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
