"""What a terminal cannot show is written out."""

import io
import sys

import pytest

from lrvsf.terminal import never_refuse


@pytest.mark.survives("stdout that can show ASCII only", "\u00b1 becomes +-, and other characters are written out")
@pytest.mark.parametrize(
    "encoding, shown", [("ascii", r"1.00 +- 0.50 \xe9 \u795e"), ("utf-8", "1.00 \u00b1 0.50 \xe9 \u795e")]
)
def test_what_an_encoding_lacks_is_written_out(monkeypatch, encoding, shown):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    never_refuse()
    print("1.00 \u00b1 0.50 \xe9 \u795e", end="", flush=True)
    assert out.getvalue().decode(encoding) == shown
