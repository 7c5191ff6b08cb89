"""A real kernel against a scripted conductor: outputs, saved forms, live updates from threads."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import nbclient
import nbformat
import pytest


@pytest.fixture
def notebook(service, tmp_path) -> Iterator["Notebook"]:
    notebook = Notebook(tmp_path)
    yield notebook
    notebook.close()


class Notebook:
    """Runs cells one after the other in one kernel and keeps their outputs."""

    def __init__(self, cwd) -> None:
        self.document = nbformat.v4.new_notebook()
        self._client = nbclient.NotebookClient(
            self.document, kernel_name="python3", timeout=120, allow_errors=True,
            resources={"metadata": {"path": str(cwd)}},
        )  # fmt: skip
        self._client.create_kernel_manager()
        self._client.start_new_kernel()
        self._client.start_new_kernel_client()
        self.run("%load_ext cloudshift_lab")

    def run(self, source: str) -> list:
        self.document.cells.append(nbformat.v4.new_code_cell(source))
        index = len(self.document.cells) - 1
        self._client.execute_cell(self.document.cells[index], index)
        return self.document.cells[index].outputs

    def close(self) -> None:
        self._client._cleanup_kernel()


def html(output) -> str:
    return output.data.get("text/html", "")


def is_widget(output) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.data


def test_watch_leaves_a_saved_line_and_a_live_card_and_returns(notebook, service, make_run) -> None:
    service.views = [make_run()]
    saved, live = notebook.run("%cloudshift watch")
    assert "first" in html(saved)
    assert is_widget(live)


def test_the_saved_output_becomes_the_whole_card_when_the_run_ends(
    notebook, service, make_run
) -> None:
    service.views = [make_run()]
    outputs = notebook.run("%cloudshift watch")
    ended = [make_run(state="finished", step=4242)]
    await_update(notebook, outputs[0], "4,242", lambda: setattr(service, "views", ended))


def test_migrate_shows_bill_and_approval_and_the_decision_is_saved(
    notebook, service, make_run
) -> None:
    service.views = [make_run()]
    saved, live = notebook.run("%cloudshift migrate --to gcp-sim")
    assert "pays for itself" in html(saved)
    assert is_widget(live)
    notebook.run("%cloudshift approve")

    def end_move() -> None:
        moved = msgspec.structs.replace(service.moves[0], phase="source_retired", sealed_step=777)
        service.moves = [moved]

    await_update(notebook, saved, "moved at step 777", end_move)
    assert "approved by" in html(saved)


def test_a_decided_move_is_shown_without_buttons(notebook, service, make_run, make_move) -> None:
    service.views, service.moves = [make_run()], [make_move(phase="rejected")]
    notebook.run("import cloudshift_lab as cs")
    outputs = notebook.run("cs.move('mig-1')")
    assert [is_widget(output) for output in outputs] == [False]


def test_an_error_of_ours_is_one_line_and_stops_run_all(notebook) -> None:
    (output,) = notebook.run("%cloudshift watch")
    assert output.output_type == "error"
    assert len(output.traceback) == 1
    assert "there is no run yet" in output.traceback[0]


def test_interrupting_a_wait_leaves_the_run_alone_and_says_how_to_watch(
    notebook, service, make_run
) -> None:
    (printed,) = notebook.run("import os; print(os.getpid())")
    service.started = make_run(state="running")
    threading.Timer(2.0, os.kill, [int(printed.text), signal.SIGINT]).start()
    outputs = notebook.run("%%cloudshift train --name gpt --wait\nprint(1)\n")
    assert "detached; gpt goes on" in outputs[-1].data["text/plain"]
    assert service.runs()[0].state == "running"


def test_the_dashboard_is_a_frame_below_the_page_own_server(notebook) -> None:
    (frame,) = notebook.run("%cloudshift dashboard")
    assert is_widget(frame)


def await_update(notebook, output, said: str, change: Callable[[], None]) -> None:
    """Change what the conductor says in the middle of a cell, and wait for the output to follow.

    In the middle, since the notebook client drops what a thread sends while no cell runs.
    """
    threading.Timer(1.0, change).start()
    notebook.run("import time; time.sleep(5)")
    until = time.monotonic() + 60
    while said not in html(output):
        assert time.monotonic() < until, f"never said {said!r}: {html(output)}"
        notebook.run("import time; time.sleep(0.5)")
