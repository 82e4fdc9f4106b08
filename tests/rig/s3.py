"""A server of objects for a test: moto's, in a thread, reached as s3:// by s3fs."""

import logging

import fsspec
import pytest


@pytest.fixture(scope="module")
def bucket():
    """Start a server; give the URL of an empty bucket on it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "of-the-test",
            "AWS_SECRET_ACCESS_KEY": "of-the-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            environment.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def names(url):
    """Return the names of all objects under a URL, by a client of their own."""
    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    start = url.removeprefix("s3://")
    return sorted(x.removeprefix(f"{start}/") for x in system.find(start))
