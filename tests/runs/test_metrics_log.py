"""The log of a run: damaged and cut lines, and a resumed run."""

import pytest

from hsakd_jax.runs.metrics_log import MetricsLog, Record

# Another loss than the one that was written.
FLIPPED = Record(step=2, epoch=0.5, values={"loss": 1.5}).to_json().replace("1.5", "1.7").encode()


def test_records_are_rewound_to_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append(Record(step=step, epoch=0.5, values={"loss": 1.5}))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [e.step for e in log.read()] == [1, 2, 3]
    log.rewind(2)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(
        f'{{"step":{step},"epoch":0.5,"loss":1.5,"crc32":{crc}}}\n' for step, crc in ((1, 233952060), (2, 1441757716))
    )


@pytest.mark.parametrize(
    "bad", [b"\xff", b"}", b"\0\0\0", b'{"step": "x"}', b'{"step":2,"epoch":1}\r{"st', b"[" * 10**5, FLIPPED]
)
def test_a_damaged_record_costs_itself_only(bad, tmp_path, capsys):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append(Record(step=step, epoch=0.5, values={"loss": 1.5}))
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    content = b"".join([lines[0], bad + b"\n", *lines[1:], b'{"step": 4, "lo'])
    (tmp_path / "metrics.jsonl").write_bytes(content)
    for _ in range(2):
        assert [entry.step for entry in log.read()] == [1, 2, 3]
    assert capsys.readouterr().err == f"warning: {tmp_path}/metrics.jsonl has 1 damaged line, which is left out\n"
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    log.rewind(3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines)
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == bad + b"\n"
    assert "1 damaged line, moved to metrics.damaged.jsonl\n" in capsys.readouterr().err
