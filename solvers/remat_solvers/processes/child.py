"""Runs a function in a fresh interpreter, which may hang, crash or be killed without harm to the caller.

A solver's backend may ignore its time limit, crash, or use all memory. In a child process it can be killed, and the
caller still has an answer. A child shares no state with the caller: it needs nothing of the caller's `__main__`, and
finds modules where the caller finds them now. It runs in a session of its own, so that Ctrl-C reaches the caller only,
and it is killed together with every process that it started.

    FolderChild   reads files in a folder, and leaves its answers in the same folder; its output is kept
    PipeChild     exchanges messages with the caller while it works, and ends when the caller is gone
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, Self

ANSWER, UNFINISHED, OUTPUT = "answer", "unfinished", "output"  # files in the folder of a FolderChild
LENGTH = struct.Struct("<Q")  # of a message, in bytes


class Child:
    """A process that calls `target`, "module:function", with strings. `close` it, or use it as a context."""

    def __init__(self, target: str) -> None:
        module, _, function = target.partition(":")
        self._code = f"import sys; from {module} import {function}; {function}(*sys.argv[1:])"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def wait(self, seconds: float | None) -> int | None:
        """Its exit code (of a signal, minus the signal's number); None: it does not end within `seconds`."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Kill it with all that it started, unless it has ended."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)  # it leads a session, so its process group has its id
            else:
                process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _start(self, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", self._code, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
            **streams,
        )
        return self.process


class FolderChild(Child):
    """A child that works in a temporary folder. Put its files into `folder`, then `start` it.

    The target is called with the path of the folder and the arguments of `start`. It leaves answers with
    `leave_answer`, each in place of the one before.
    """

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._temporary = tempfile.TemporaryDirectory(prefix="remat-")
        self.folder = Path(self._temporary.name)

    def start(self, *arguments: str) -> None:
        """Begin to work."""
        with open(self.folder / OUTPUT, "wb") as output:
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            self._start(str(self.folder), *arguments, **streams)

    def answer(self) -> Any:
        """The latest answer; None: there is none yet."""
        path = self.folder / ANSWER
        return pickle.loads(path.read_bytes()) if path.exists() else None

    def output(self) -> str:
        """The text that it wrote to stdout and stderr."""
        return (self.folder / OUTPUT).read_text(errors="replace")

    def close(self) -> None:
        """Kill it with all that it started, and remove the folder."""
        super().close()
        self._temporary.cleanup()


def leave_answer(folder: str, answer: object) -> None:
    """In a FolderChild: leave `answer` for the caller, who never sees a part of it."""
    unfinished = Path(folder) / UNFINISHED
    unfinished.write_bytes(pickle.dumps(answer))
    unfinished.replace(Path(folder) / ANSWER)


class Connection:
    """Sends and receives objects over two pipes, each a pickle behind its length.

    A thread receives, so that neither side ever waits until the other one reads. on_end: called in that thread when
    the other side is gone.
    """

    def __init__(self, source: IO[bytes], sink: IO[bytes], on_end: Callable[[], object] = lambda: None) -> None:
        self._source, self._sink, self._on_end = source, sink, on_end
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pending(self) -> bool:
        """Whether a message has come that was not received yet."""
        return not self._inbox.empty()

    def send(self, message: object) -> None:
        """Send one object; it is lost where the other side is gone, or this one closed."""
        content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(OSError, ValueError):
            self._sink.write(LENGTH.pack(len(content)) + content)
            self._sink.flush()

    def receive_one(self) -> Any:
        """The next message; waits as long as it takes."""
        return self._inbox.get()

    def receive(self, seconds: float | None = 0.0) -> list[Any]:
        """All messages that have come by now; waits up to `seconds` for the first one (None: as long as it takes)."""
        messages = []
        with contextlib.suppress(Empty):
            messages.append(self._inbox.get(timeout=seconds))
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError, EOFError):  # closed, here or there
            while True:
                self._inbox.put(pickle.loads(self._read(LENGTH.unpack(self._read(LENGTH.size))[0])))
        self._on_end()

    def _read(self, size: int) -> bytes:
        content = self._source.read(size)
        if len(content) < size:
            raise EOFError
        return content


class PipeChild(Child):
    """A child that starts at once and exchanges messages with the caller; its own output is discarded.

    The target is called without arguments, and gets its side of the connection from `connect_to_caller`.
    """

    def __init__(self, target: str) -> None:
        super().__init__(target)
        process = self._start(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdin is not None
        assert process.stdout is not None
        self.connection = Connection(process.stdout, process.stdin)


def connect_to_caller() -> Connection:
    """In a PipeChild: the connection to the caller. The process ends when the caller is gone, whatever it does then.

    From here on, nothing that the process prints can mix with the messages.
    """
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return Connection(source, sink, on_end=lambda: os._exit(0))
