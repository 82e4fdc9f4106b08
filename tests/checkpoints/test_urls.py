import re
import sys

import pytest

from jmudsc import load

KNOWN = "such as gs:// or s3://"


@pytest.mark.parametrize("scheme", ["http", "xyz"])
def test_a_url_of_no_file_system_is_refused(scheme):
    url = f"{scheme}://bucket/run"
    message = (
        f"{url}: expected a file system that etils.epath knows, {KNOWN}, got "
        f"{scheme}://. Copy the checkpoint here."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load(url)


def test_a_url_whose_file_system_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    message = (
        "s3://bucket/run: expected a file system that is installed, got one without "
        "its package: "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        load("s3://bucket/run")
    assert str(error.value).endswith("Install that, or copy the checkpoint here.")
