"""The table of hosts: pytest's reports become a row, in the place of that version's last one."""

import pytest
from commands import hosts_table
from harness.errors import HarnessError

REPORT = '<testsuites><testsuite tests="1240" failures="{failed}" errors="1" skipped="30"/></testsuites>'


def test_a_report_is_counted(tmp_path):
    report = tmp_path / "host.xml"
    report.write_text(REPORT.format(failed=0).replace('errors="1"', 'errors="0"'))
    assert hosts_table.count(report) == "1,210 / 30"
    report.write_text(REPORT.format(failed=2))
    assert hosts_table.count(report) == "1,207 / 30, **3 failed**"


def test_a_row_takes_the_place_of_its_version_and_rows_keep_their_order():
    text = f"before\n{hosts_table.BEGIN}\n| 0.30.0 | old |\n| 0.9.1 | x |\n{hosts_table.END}\nafter\n"
    text = hosts_table.with_row(text, "0.30.0", "| 0.30.0 | new |")
    text = hosts_table.with_row(text, "0.16.3", "| 0.16.3 | y |")
    assert text.startswith("before\n")
    assert text.endswith(f"| 0.9.1 | x |\n| 0.16.3 | y |\n| 0.30.0 | new |\n{hosts_table.END}\nafter\n")


def test_contributing_has_a_place_for_it():
    text = hosts_table.CONTRIBUTING.read_text(encoding="utf-8")
    assert hosts_table.with_row(text, "99.0.0", "| 99.0.0 | z |").count("| 99.0.0 | z |") == 1
    with pytest.raises(HarnessError, match="lacks the markers"):
        hosts_table.with_row("nothing", "0.30.0", "| 0.30.0 |")
