"""A child process spoken to in JSON lines: its crash, its memory and its imports stay its own.

Parent and child write one JSON object a line. A request is ``{"method", "params"}``; an answer is ``{"result"}`` or
``{"error": {"kind", "message"}}`` with a kind of ``device_profiler.errors.WORKLOAD_ERRORS``. The child ends itself
when its standard input closes, so nothing is left behind when the parent is killed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from device_profiler.errors import WORKLOAD_ERRORS, OutOfMemory, TimedOut, WorkloadError, one_line
from device_profiler.threads import as_given

Handler = Callable[..., Any]


def python_module(module: str, *words: str) -> list[str]:
    """The command that runs a module of ours, whatever modules lie in the current folder (``-P``)."""
    return [sys.executable, "-P", "-m", module, *words]


def module_path() -> str:
    """``PYTHONPATH`` for ``python_module``: what this process imports from, and never just the current folder.

    The current folder stays where our own packages lie in it: a checkout that is not installed.
    """
    own = Path(__file__).resolve().parent.parent
    here = Path.cwd()
    paths = [path for path in sys.path if os.path.isabs(path) and (Path(path) != here or here == own)]
    return os.pathsep.join([str(own), *(path for path in paths if Path(path) != own)])


class ChildDied(WorkloadError):
    """The process ended without an answer. ``signal`` is what ended it, 0 if it exited by itself."""

    def __init__(self, message: str, signal_number: int = 0) -> None:
        super().__init__(message)
        self.signal = signal_number


class Child:
    """One child process running a module of ours that calls ``serve``.

    Args:
        module: what ``python -m`` runs.
        threads: for every numeric library in the child.
        memory_limit_mb: private memory the child may take before an allocation fails in it; None for no limit.
    """

    def __init__(self, module: str, *, threads: int = 1, memory_limit_mb: float | None = None) -> None:
        self.module = module
        environment = as_given()
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(threads)
        environment["PYTHONPATH"] = module_path()
        environment["PYTHONWARNINGS"] = "ignore"
        if memory_limit_mb:
            environment["CHILD_MEMORY_LIMIT_MB"] = str(memory_limit_mb)
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            python_module(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,
        )
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id, also that of its process group."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def call(self, method: str, timeout_s: float, **params: Any) -> Any:
        """Ask and wait for the answer.

        Raises:
            TimedOut: no answer within ``timeout_s``; the child is killed.
            ChildDied: the process ended; OutOfMemory if the system killed it for memory.
            WorkloadError: what the child answered, as the class of its kind.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "params": params}).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._death() from None
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise TimedOut(f"no answer to {method} within {timeout_s:g} s; stopped") from None
        if line is None:
            raise self._death()
        answer = json.loads(line)
        if "error" in answer:
            error = WORKLOAD_ERRORS.get(answer["error"]["kind"], WorkloadError)
            raise error(answer["error"]["message"])
        return answer["result"]

    def _death(self) -> WorkloadError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.close()
            return ChildDied("the process closed its output without ending; stopped")
        said = self._last_words()
        if code == -signal.SIGKILL:
            return OutOfMemory("killed by the system (SIGKILL), as it does when memory runs out")
        if code < 0:
            name = signal.Signals(-code).name
            return ChildDied(f"crashed with {name}{': ' + said if said else ''}", -code)
        return ChildDied(f"ended with exit code {code}{': ' + said if said else ''}")

    def _last_words(self) -> str:
        if self._stderr.closed:
            return ""
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        return one_line(lines[-1], 200) if lines else ""

    def close(self) -> None:
        """Kill the child's process group and collect it."""
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except (BrokenPipeError, ValueError):
                    pass
        if not self._stderr.closed:
            self._stderr.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(handlers: Mapping[str, Handler]) -> None:
    """The child's side: answer requests until standard input closes.

    What libraries print goes to standard error. A request that raises is answered with the kind of failure; the
    process lives on.
    """
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_memory()
    requests: queue.Queue[bytes] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            requests.put(line)
        os._exit(0)  # the parent is gone, even if a request is still running

    threading.Thread(target=listen, daemon=True).start()
    while True:
        request = json.loads(requests.get())
        try:
            answer = {"result": handlers[request["method"]](**request["params"])}
        except BaseException as error:  # noqa: B036 - whatever a runtime throws is the workload's result
            answer = {"error": {"kind": classify(error), "message": one_line(f"{type(error).__name__}: {error}")}}
            if isinstance(error, WorkloadError):
                answer["error"]["message"] = one_line(error)
        channel.write(json.dumps(answer).encode() + b"\n")
        channel.flush()


MEMORY_WORDS = ("out of memory", "failed to allocate", "bad_alloc", "bad allocation", "can't allocate memory")
UNSUPPORTED_WORDS = (
    "not implemented",
    "notimplemented",
    "not_implemented",
    "could not find an implementation",
    "is not supported",
    "are not supported",
    "unsupported",
    "only supports tensors with rank",
    "no onnx function found",
    "not a registered",
)


def classify(error: BaseException) -> str:
    """``oom``, ``unsupported``, ``timeout`` or ``failed``: the status that an exception of a library stands for."""
    if isinstance(error, WorkloadError):
        return error.status
    text = f"{type(error).__name__} {error}".lower()
    if isinstance(error, MemoryError) or any(word in text for word in MEMORY_WORDS):
        return "oom"
    if isinstance(error, NotImplementedError) or any(word in text for word in UNSUPPORTED_WORDS):
        return "unsupported"
    return "failed"


def _limit_memory() -> None:
    limit = os.environ.get("CHILD_MEMORY_LIMIT_MB")
    if limit and sys.platform == "linux":
        import resource

        size = int(float(limit) * 1e6)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
