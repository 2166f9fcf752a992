"""This project's rendezvous server in the test's own process: its rules, routes and store for real,
under werkzeug in place of gunicorn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from werkzeug.serving import make_server

from stun_server.app import create_app
from stun_server.service import Service
from stun_server.settings import RegistrySettings
from stun_server.store import open_store


class ServedRegistry:
    """A running one."""

    def __init__(self, service: Service, port: int) -> None:
        self.service = service
        self.has_v1 = True
        """Whether it has the richer routes, or those of spec.md section 9 alone."""
        self.url = f"http://127.0.0.1:{port}"

    def instances(self, cluster_id: str = "c") -> dict[str, Any]:
        """The leases by instance id."""
        leases = self.service.registry.listing(cluster_id).leases
        return {lease.instance_id: lease for lease in leases}


@contextmanager
def served_registry(folder: Path, **settings: Any) -> Iterator[ServedRegistry]:
    """Without a UDP responder unless `udp_port` is given."""
    chosen = {"udp_port": None, **settings}
    made = RegistrySettings(
        host="127.0.0.1", store=f"sqlite:///{folder}/registry.sqlite3", **chosen
    )
    service = Service(made, open_store(made.store))
    app = create_app(service=service)

    def serve(environ: dict[str, Any], start: Any) -> Any:
        if environ["PATH_INFO"].startswith("/v1/") and not served.has_v1:
            start("404 NOT FOUND", [("Content-Length", "0")])
            return []
        return app(environ, start)

    server = make_server("127.0.0.1", 0, serve, threaded=True)
    served = ServedRegistry(service, server.server_port)
    service.start(with_binding=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        service.drain()
        server.shutdown()
        server.server_close()
        service.close()
        thread.join(10)
