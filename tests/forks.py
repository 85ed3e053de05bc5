"""A process that has imported what runs need, and forks for each run: what the scripts of killed runs have in common.

It reads lines of JSON, [log, processes, *run], and answers each with the exit statuses of that many processes that run
together; once one fails, the others are killed, as a launcher does. What they say goes to LOG.said.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST = 300  # seconds of a run


@contextmanager
def forks_of(script: Path) -> Iterator[Callable[..., tuple[list[int], str]]]:
    """`ask(log, processes, *run)` of a script that serves: the exit statuses of this run, and what it said."""
    # On the CPU wherever the test runs; the number of threads may move last bits.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(script)], env=environment, text=True, **pipes) as process:

        def ask(log: Path, *run: Any) -> tuple[list[int], str]:
            process.stdin.write(json.dumps([str(log), *run]) + "\n")
            process.stdin.flush()
            statuses = json.loads(process.stdout.readline())
            said = Path(f"{log}.said")
            text = said.read_text()
            said.unlink()  # else the next run is blamed for what this one's survivor says of its end
            return statuses, text

        yield ask
        process.stdin.close()  # it ends


def serve(run: Callable[..., None]) -> None:
    """Answers lines until there are no more, then ends the process.

    `run` gets log, rank and what else the line has.
    """
    for line in sys.stdin:
        log, processes, *asked = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        running = {_start(run, port, processes, log, rank, asked): rank for rank in range(processes)}
        statuses = [0] * processes
        while running:
            process, status = os.wait()
            statuses[running.pop(process)] = os.waitstatus_to_exitcode(status)
            if status:
                for other in running:
                    os.kill(other, signal.SIGKILL)
        print(json.dumps(statuses), flush=True)
    os._exit(0)  # unloading what the forks were spared takes seconds


def _start(run: Callable[..., None], port: int, processes: int, log: str, rank: int, asked: list[Any]) -> int:
    """A process that runs; its id."""
    if process := os.fork():
        return process
    status = 1
    try:
        os.setsid()  # a signal to its group reaches it and its loading processes
        signal.alarm(LONGEST)
        said = os.open(f"{log}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if processes > 1:
            together = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in together.items()}})
        run(log, rank, *asked)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
