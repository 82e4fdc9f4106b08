"""A server of objects for a test: moto's, in a thread, reached as s3:// by s3fs."""

import functools
import logging
import os

import fsspec
import pytest


@functools.cache
def start():
    """Start the one server of this process, which file systems remember."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "of-the-test",
        "AWS_SECRET_ACCESS_KEY": "of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return server


@pytest.fixture(scope="module")
def bucket():
    """Give the URL of an empty bucket on the server."""
    start()
    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    if system.exists("bucket"):
        system.rm("bucket", recursive=True)
    system.mkdir("bucket")
    return "s3://bucket"


def names(url):
    """Return the names of all objects under a URL, by a client of their own."""
    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    start = url.removeprefix("s3://")
    return sorted(x.removeprefix(f"{start}/") for x in system.find(start))
