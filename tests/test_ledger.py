"""Counts by reason, with the first names of each."""

from lrvsf.ledger import EXAMPLES, Ledger


def test_a_ledger_counts_all_and_names_the_first():
    ledger = Ledger()
    assert not ledger and ledger.report("not used") == {} and ledger.examples() == {}
    ledger.add("no image", "line 1")
    ledger.add_all("no product_id", (f"line {number}\x1b[2J" for number in range(2, 2 + EXAMPLES + 2)))
    ledger.add("too large")
    names = [f"line {number}\\x1b[2J" for number in (2, 3, 4)]
    assert ledger.table() == {"no product_id": 5, "no image": 1, "too large": 1}
    assert list(ledger.table())[0] == "no product_id", "most frequent first"
    assert ledger.report("not used") == {
        "not used": ledger.table(),
        "not used, the first": {"no product_id": "; ".join(names), "no image": "line 1"},
    }
    assert ledger.examples()["no product_id"] == {"count": 5, "such as": ", ".join(names)}


def test_ledgers_of_workers_merge_into_what_one_would_have_counted():
    counted = [("empty", "a"), ("empty", "b"), ("damaged", "c"), ("empty", "d"), ("empty", "e"), ("damaged", "f")]
    one, parts = Ledger(), [Ledger(), Ledger()]
    for number, (reason, name) in enumerate(counted):
        one.add(reason, name)
        parts[number // 3].add(reason, name)
    merged = Ledger()
    for part in parts:
        merged.merge(part)
    assert (merged.counts, merged.first) == (one.counts, one.first)
    faults = Ledger()
    faults.take("images without bytes", merged, "empty")
    faults.take("never seen", merged, "absent")
    assert faults.examples() == {"images without bytes": {"count": 4, "such as": "a, b, d"}}
