"""What img2dataset's own environment runs, as a program: `download` with the settings of the first argument, bounded.

The module's level runs in each process of img2dataset's too, for they import the program that started them. It needs
nothing of lrvsf, which that environment does not have.
"""

import http.client
import json
import os
import signal
import sys
import threading
import time

MAX_BYTES = 64 * 2**20  # of one image
MAX_SECONDS = 300  # for all of it; img2dataset's `timeout` is for each read, and a byte a second never exceeds it
CHUNK = 2**16

read_amount = http.client.HTTPResponse.read


def read(response, amount=None):
    """`HTTPResponse.read`, but a body that is asked for as a whole is bounded in bytes and seconds."""
    if amount is not None:
        return read_amount(response, amount)
    end, parts, size = time.monotonic() + MAX_SECONDS, [], 0
    while part := response.read1(CHUNK):  # returns with what is there; `read` would wait for all of it
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise ValueError(f"body over {MAX_BYTES >> 20} MiB")
        if time.monotonic() > end:
            raise TimeoutError(f"timed out: the body took over {MAX_SECONDS} seconds")
    if response.length:  # what was announced and did not come
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


# img2dataset calls `urlopen(...).read()` and has no setting for a bound; this is the one place that all of it passes.
http.client.HTTPResponse.read = read


def end_with_parent():
    """The pipe on standard input closes when the parent ends, however it ends: then the whole group of processes goes
    too. Otherwise a second run would write into the files of an orphan."""
    os.read(0, 1)  # not sys.stdin, whose lock would be held when Python shuts down
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    from img2dataset import download

    download(**json.loads(sys.argv[1]))
