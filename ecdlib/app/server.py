"""The server of the page, for this machine only."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any
from weakref import WeakSet

from ecdlib.app.database import DatabaseTab
from ecdlib.app.findings import latent_database
from ecdlib.app.look import design
from ecdlib.app.predict import PredictTab
from ecdlib.app.uploads import CHUNK
from ecdlib.app.worker import Worker
from ecdlib.base.errors import EcdError
from ecdlib.base.workers import ONE_THREAD

ADDRESS = "127.0.0.1"
#: What a page may load, to be enforced by the browser: the app works offline, and tells no one what it is given.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
UNUSED = 300_000  #: ms that a page may take to load
_SESSIONS: WeakSet[Worker] = WeakSet()  # processes of the open pages
_FOLDERS: set[Path] = set()  # of the open pages, for their files


def page() -> Any:
    """The page of one session, with a folder and a process that end with the session."""
    import panel as pn
    from panel.io.resources import LOCAL_DIST

    if pn.state.curdoc is not None:
        # Panel sets it where it serves the HTML; a session that begins with the socket (the first one had expired while
        # a busy browser was loading) would send the browser to Panel's CDN
        pn.state.curdoc.template_variables["dist_url"] = LOCAL_DIST
    folder, session = Path(tempfile.mkdtemp(prefix="ecd-app-")), Worker()
    _SESSIONS.add(session)
    _FOLDERS.add(folder)

    def end(_: Any) -> None:
        session.end()
        shutil.rmtree(folder, ignore_errors=True)
        _FOLDERS.discard(folder)

    pn.state.on_session_destroyed(end)
    tabs = {"Predict": PredictTab(folder, session).view, "Latent database": DatabaseTab(folder, session).view}
    choice = pn.widgets.RadioButtonGroup(options=list(tabs), value="Predict", max_width=360)  # the keyboard reaches it

    def choose(*_: Any) -> None:
        for name, view in tabs.items():
            view.visible = name == choice.value

    choose()
    choice.param.watch(choose, "value")
    return pn.Column(
        "# Crystal properties from electron densities",
        choice,
        *tabs.values(),
        max_width=1200,
        styles={"margin": "0 auto", "padding": "0 16px"},
    )


def guard(application: Any, hosts: set[str]) -> Any:
    """A tornado application that answers only requests for these hosts, with pages that may ask nobody else.

    A foreign page can make its own name lead to this machine (DNS rebinding); its requests then have its name as their
    host, and an origin of that name, which the check of origins would take for the server's own.
    """
    from tornado import httputil

    class Guarded(httputil.HTTPMessageDelegate):
        def __init__(self, answer: Any, connection: Any):
            self.answer, self.connection = answer, connection

        def headers_received(self, start_line: Any, headers: Any) -> Any:
            if headers.get_list("Host") in [[host] for host in hosts]:
                return self.answer.headers_received(start_line, headers)
            self.answer, body = httputil.HTTPMessageDelegate(), b"This address serves its own machine only.\n"
            about = httputil.HTTPHeaders({"Content-Length": str(len(body)), "Connection": "close"})
            self.connection.write_headers(httputil.ResponseStartLine("HTTP/1.1", 403, "Forbidden"), about, body)
            self.connection.finish()
            return None

        def data_received(self, chunk: bytes) -> Any:
            return self.answer.data_received(chunk)

        def finish(self) -> None:
            self.answer.finish()

        def on_connection_close(self) -> None:
            self.answer.on_connection_close()

    class Guard(httputil.HTTPServerConnectionDelegate):
        def start_request(self, server_conn: Any, request_conn: Any) -> Any:
            write = request_conn.write_headers

            def with_policy(start: Any, headers: Any, chunk: bytes | None = None) -> Any:
                headers["Content-Security-Policy"] = POLICY
                return write(start, headers, chunk)

            request_conn.write_headers = with_policy
            return Guarded(application.start_request(server_conn, request_conn), request_conn)

        def on_close(self, server_conn: Any) -> None:
            application.on_close(server_conn)

    return Guard()


def serve(port: int, show: bool) -> None:
    """Serve the app to this machine until Ctrl-C; prints the address.

    Args:
        port: 0 takes a free one.
        show: open it in the browser.

    Raises:
        EcdError: the port is in use, data are missing.
    """
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((ADDRESS, port))
            port = probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise EcdError(f"--port {port}", f"cannot be used ({error})", "Choose another one, or 0 for any.") from error
    latent_database()
    import panel as pn

    logging.basicConfig(level=logging.WARNING)
    os.environ.update(ONE_THREAD)  # sessions share the cores
    look, css = design()
    pn.extension("plotly", "tabulator", "filedropper", sizing_mode="stretch_width", design=look, raw_css=[css])
    address = f"{ADDRESS}:{port}"
    origins = [address, f"localhost:{port}"]  # no other page may talk to the server
    server = pn.io.server.get_server(
        page,
        port=port,
        address=ADDRESS,
        websocket_origin=origins,
        title="ecdlib",
        show=show,
        unused_session_lifetime_milliseconds=UNUSED,
        http_server_kwargs={"max_body_size": CHUNK},
    )
    server._http.request_callback = guard(server._http.request_callback, set(origins))
    print(f"open http://{address}/ (Ctrl-C ends it)", flush=True)
    try:
        server.run_until_shutdown()
    finally:
        for session in list(_SESSIONS):
            session.end()
        for folder in _FOLDERS:
            shutil.rmtree(folder, ignore_errors=True)
