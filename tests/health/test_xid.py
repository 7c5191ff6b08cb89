import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.health.xid import asks, find_xids, parse_xid
from cloudshift_lab.health.xid_table import ASKS, RECOVERY

LINES = [
    ("NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
     79, "0000:3b:00"),
    ("[ 1234.567890] NVRM: Xid (PCI:0000:3B:00): 31, pid=77, name=python, Ch 00000010, intr 0",
     31, "0000:3B:00"),
    ("Nov 23 12:00:01 host kernel: [99.1] NVRM: Xid (PCI:0000:af:00): 48, An uncorrectable error",
     48, "0000:af:00"),
    ("kern  :warn  : 2025-01-21T04:41:44,287197+00:00 NVRM: Xid (PCI:0001:00:00): 43, Ch 8",
     43, "0001:00:00"),
    ("<4>1 2026-01-01T00:00:00Z h kernel - - - NVRM: Xid (PCI:0000:65:00): 94, Contained", 94,
     "0000:65:00"),
    ("NVRM: Xid (PCI:00000000:3B:00.0): 63, Row Remapper: New row marked", 63, "00000000:3B:00"),
    ("NVRM: Xid (0000:03:00): 14, Channel 00000001", 14, "0000:03:00"),
    ("NVRM: Xid (PCI:0000:01:00 GPU-I:05): 45, pid=1, name=a, Ch 1", 45, "0000:01:00"),
    ("NVRM: Xid (PCI:0000:04:00): 69", 69, "0000:04:00"),
    ("nvrm: xid (PCI:0000:04:00): 99999, something new", 99999, "0000:04:00"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "pci"), LINES)
def test_a_line_is_read_whatever_stands_before_it(line: str, code: int, pci: str) -> None:
    xid = parse_xid(line)
    assert xid is not None
    assert (xid.code, xid.pci) == (code, pci)


@pytest.mark.parametrize(
    "line",
    [
        "", "NVRM: loading NVIDIA UNIX x86_64 Kernel Module", "usb 1-1: new device 79",
        "NVRM: GPU at PCI:0000:3b:00: GPU-1234", "NVRM: Xid (PCI:0000:3b:00): none",
        "audit: NVRM mentions Xid 79 without an address",
        "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 24007, Non-fatal, Link 44",
    ],
)  # fmt: skip
def test_other_lines_are_no_xid(line: str) -> None:
    assert parse_xid(line) is None


@given(st.text(max_size=60), st.text(max_size=60), st.integers(0, 10**9 - 1))
def test_no_surroundings_can_hide_or_break_a_message(before: str, after: str, code: int) -> None:
    line = f"{before.replace('NVRM', '')} NVRM: Xid (PCI:0000:3b:00): {code}, {after}"
    xid = parse_xid(line.replace("\n", " ").replace("\r", " "))
    assert xid is not None
    assert (xid.code, xid.pci) == (code, "0000:3b:00")


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(line: str) -> None:
    parse_xid(line)
    find_xids([(0.0, line)], "n1")


def test_process_and_recovery_are_read() -> None:
    xid = parse_xid(LINES[1][0])
    assert xid is not None
    assert xid.process == 77
    change = parse_xid(
        "NVRM: Xid (PCI:0009:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x4 "
        "(Drain and Reset)"
    )
    assert change is not None
    assert asks(change) == RECOVERY[4]


@pytest.mark.parametrize(
    ("code", "action", "proof"),
    [
        (79, "reboot the node", True), (48, "drain and reset the GPU", True),
        (119, "reset the GPU", True), (95, "reset the GPU", True), (64, "reset the GPU", True),
        (13, "restart the run", False), (31, "restart the run", False),
        (94, "restart the run", False),
        (63, "none", False), (43, "none", False), (74, "drain the node", False),
        (123456, "contact support", False),
    ],
)  # fmt: skip
def test_a_code_asks_for_what_the_catalogue_asks(code: int, action: str, *, proof: bool) -> None:
    (found,) = find_xids([(1.0, f"NVRM: Xid (PCI:0000:3b:00): {code}, text")], "n1")
    assert (found.action, found.deterministic) == (action, proof)
    assert found.subject.name == "n1/PCI:0000:3b:00"


@pytest.mark.parametrize(("word", "action"), [("Fatal", "reset the GPU"), ("Nonfatal", "watch")])
def test_an_nvlink_message_says_itself_whether_it_is_fatal(word: str, action: str) -> None:
    line = f"NVRM: Xid (PCI:0008:01:00): 149, NETIR_LINK_EVT  {word}   XC0 i0 Link 01 (0x021425c6)"
    (found,) = find_xids([(1.0, line)], "n1")
    assert found.action == action


def test_many_lines_of_one_kind_are_one_finding() -> None:
    lines = [(float(at), LINES[0][0]) for at in range(5)]
    (found,) = find_xids(lines, "n1")
    assert found.at == 0.0
    assert found.evidence[1].value == 5


def test_no_code_asks_for_two_things() -> None:
    from cloudshift_lab.health.xid_table import _CODES

    assert sum(len(codes) for _, codes in _CODES) == len(ASKS)
