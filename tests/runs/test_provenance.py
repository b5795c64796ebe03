"""The environment that a result records."""

import pytest

from hsakd_jax.runs import provenance


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["model name\t: Some CPU @ 2 GHz", "flags\t\t: sse avx2 avx512f"], " (Some CPU @ 2 GHz, AVX-512)"),
        (["model name\t: Some CPU", "flags\t\t: sse avx2"], " (Some CPU, AVX2)"),
        (["model name\t: Old CPU", "flags\t\t: sse avx2_no"], " (Old CPU)"),
        (["Features\t: asimd"], ""),
    ],
)
def test_a_result_records_the_processor(monkeypatch, lines, words):
    monkeypatch.setattr(provenance.Path, "read_text", lambda _: "\n".join(["processor\t: 0", *lines, ""]))
    assert provenance._processor() == words
