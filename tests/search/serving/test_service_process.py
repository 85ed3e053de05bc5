"""The service as a process: how it starts, changes its generation under load, and ends."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from made import squares, tiny_condvit
from waiting import wait_for

from lrvsf.search.generations import Generations
from lrvsf.search.serving.answering import Answering
from lrvsf.search.serving.limits import Limits
from lrvsf.search.serving.serve import TOKEN, read_token
from lrvsf.search.serving.telemetry import Telemetry

SCRIPT = Path(__file__).parents[3] / "search_catalog.py"


def started(catalog):
    """A process of `serve` at a free port, and the port, as soon as it says so."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "serve", str(catalog), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    line = process.stdout.readline()
    assert "/docs" in line, process.communicate()[1]
    return process, int(line.rpartition("/docs")[0].rpartition(":")[2])


@contextmanager
def service(catalog):
    process, port = started(catalog)
    try:
        yield process, port
    finally:
        process.kill()
        process.communicate()


def ask(connection, path, body=None):
    """(status, answer) of a request."""
    connection.request("POST" if body else "GET", path, body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def connect(port):
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def begin(port, body):
    """A request of which all but the last byte was sent."""
    connection = connect(port)
    connection.putrequest("POST", "/search?k=1")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    connection.send(body[:-1])
    return connection


def taken(port):
    connection = connect(port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return int(float(text.partition("\nlrvsf_requests_taken ")[2].split()[0]))


@pytest.mark.survives("SIGTERM while a service answers", "what it took is answered, then exit status 0")
def test_sigterm_finishes_what_was_taken(_shop):
    with service(_shop / "catalog") as (process, port):
        idle = connect(port)
        assert ask(idle, "/ready")[0] == 200
        begun = [begin(port, squares(number)) for number in range(4)]
        assert wait_for(lambda: taken(port) == 4)
        process.send_signal(signal.SIGTERM)
        assert wait_for(lambda: refuses(port)), "nobody new is let in"
        for number, connection in enumerate(begun):
            connection.send(squares(number)[-1:])
            answer = connection.getresponse()
            assert answer.status == 200 and answer.will_close
            assert json.loads(answer.read())["results"][0]["hits"][0]["id"] == f"x{number}"
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def refuses(port):
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.survives(
    "a catalog that changes while a service answers from it, to a model of other dimensions too",
    "the new generation answers; no request fails",
)
def test_a_new_generation_answers_without_a_failure(shop, step, tmp_path):
    catalog, other = shop / "catalog", tmp_path / "other"
    tiny_condvit(projection_dim=8).save_pretrained(other)
    answers, asking = [], threading.Event()

    def keep_asking(port, number):
        connection = connect(port)
        while not asking.is_set():
            status, answer = ask(connection, "/search?k=8", squares(number))
            answers.append((status, [hit["id"] for hit in answer["results"][0]["hits"]] if status == 200 else answer))

    with service(catalog) as (process, port):
        threads = [threading.Thread(target=keep_asking, args=(port, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        try:
            one = connect(port)
            changes = [["index", other, catalog, "--switch"], ["rollback", catalog], ["remove", catalog, "x7"]]
            changes += [["remove", catalog, "x6"], ["compact", catalog], ["rollback", catalog]]
            for change in changes:
                step(*change)
                name = Generations(catalog).current_name()
                assert wait_for(lambda name=name: ask(one, "/ready")[1]["generation"] == name), change
            time.sleep(0.5)
        finally:
            asking.set()
            for thread in threads:
                thread.join()
        assert {status for status, _ in answers} == {200}
        sizes = [len(ids) for _, ids in answers]
        assert {8, 7, 6} <= set(sizes), "each generation answered"
        process.send_signal(signal.SIGINT)  # Ctrl-C is how a service at a terminal ends
        assert process.wait(30) == 0
        assert process.stderr.read().count("answers now, after") == len(changes)


@pytest.mark.survives("a service that is killed", "leaves nothing behind: the next one starts and answers the same")
def test_a_killed_service_leaves_nothing(_shop, make_client):
    files = sorted(path for path in (_shop / "catalog").rglob("*"))
    with service(_shop / "catalog") as (process, port):
        expected = ask(connect(port), "/search?condition=Bags", squares(2))[1]
        begin(port, squares(1))
        process.kill()
        process.wait()
    assert sorted(path for path in (_shop / "catalog").rglob("*")) == files
    with make_client(_shop / "catalog") as client:
        assert client.post("/search?condition=Bags", content=squares(2)).json() == expected


def test_a_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN, "from here")
    (tmp_path / "token").write_text(" from there\n")
    assert (read_token(None), read_token(tmp_path / "token")) == ("from here", "from there")


@pytest.mark.parametrize(
    "words, told",
    [
        (["--seconds", "0"], "seconds=0.0 must be above 0"),
        (["--port", "70000"], "port=70000 must be in 0..65535"),
        (["--token_file", "empty"], "is empty"),
        (["--token_file", "missing"], "No such file"),
    ],
)
def test_what_is_wrong_is_refused_before_the_model_is_loaded(_shop, tmp_path, step, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    with pytest.raises((ValueError, OSError), match=told):
        step("serve", _shop / "catalog", *words)


def test_a_port_that_is_taken(_shop, step):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        step("serve", _shop / "catalog", "--port", other.getsockname()[1])


@pytest.mark.survives("a new generation that is damaged", "is named in the log; the one before goes on answering")
def test_a_damaged_generation_changes_nothing(shop, step, make_client, caplog):
    catalog = shop / "catalog"
    with make_client(catalog) as client:
        answering = client.answering
        step("remove", catalog, "x7")
        (index := catalog / "generations/g-000002/index.json").rename(away := shop / "away")
        index.write_text("{")
        for _ in range(3):
            answering.reload()
        assert client.get("/ready").json()["generation"] == "g-000001"
        assert caplog.text.count("g-000002 cannot be opened, g-000001 goes on") == 1
        assert "lrvsf_failed_reloads_total 1.0" in client.get("/metrics").text, "it is not tried again at once"
        away.rename(index)
        answering._again = 0.0
        answering.reload()
        assert client.get("/ready").json()["generation"] == "g-000002"


def test_a_model_that_was_named_is_not_left_for_another(shop, model, step, tmp_path, caplog):
    tiny_condvit(projection_dim=8).save_pretrained(tmp_path / "other")
    answering = Answering(shop / "catalog", str(model), "cpu", Limits(), Telemetry())
    step("index", tmp_path / "other", shop / "catalog", "--switch")
    answering.reload()
    assert answering.catalog.generation.name == "g-000001" and "is another model" in caplog.text
    answering.close()


def test_generations_of_one_model_share_it_and_another_models_do_not(shop, step, make_client, tmp_path):
    catalog = shop / "catalog"
    tiny_condvit(projection_dim=8).save_pretrained(tmp_path / "other")
    with make_client(catalog) as client:
        encoder = client.answering.catalog.encoder
        step("remove", catalog, "x7")
        client.answering.reload()
        assert client.answering.catalog.encoder is encoder
        step("index", tmp_path / "other", catalog, "--switch")
        client.answering.reload()
        assert client.get("/ready").json()["model"] == "other"
        assert len(client.post("/embed", content=squares(1)).json()["data"][0]["embedding"]) == 8
        assert client.post("/search", content=squares(1)).json()["results"][0]["hits"][0]["id"] == "x1"


@pytest.mark.survives(
    "the folder of a catalog goes while a service answers from it", "it goes on with what it has open"
)
def test_a_catalog_that_has_gone_is_still_answered_from(shop, make_client):
    with make_client(shop / "catalog") as client:
        (shop / "catalog").rename(shop / "elsewhere")
        shutil.rmtree(shop / "elsewhere")
        client.answering.reload()
        assert client.post("/search", content=squares(1)).status_code == 200
        assert client.get("/thumbnails/x1").status_code == 200
