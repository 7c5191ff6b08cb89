"""What is wrong with a run and its machines: pure functions from windows to findings."""

from cloudshift_lab.health.corruption import find_corruption
from cloudshift_lab.health.course import Course, Ending, Happened, course_of
from cloudshift_lab.health.expected import Shown, expect
from cloudshift_lab.health.finding import Action, Evidence, Finding, Severity, Subject, worst
from cloudshift_lab.health.goodput import Goodput, GoodputFacts, Span, forecast, measured
from cloudshift_lab.health.hang import (
    HangLimits,
    confirm_hang,
    find_dead,
    find_hang,
    hang_limit_s,
    name_hang,
)
from cloudshift_lab.health.hazard import features, placement_risk, week_risk, with_findings
from cloudshift_lab.health.host import HostLimits, find_clock_skew, find_disk, find_link
from cloudshift_lab.health.live import AgentWord, LiveWatch, Looked
from cloudshift_lab.health.loss import LossLimits, find_loss_anomalies
from cloudshift_lab.health.nodes import NodeHealth, NodeLimits, NodeState, advance, clear
from cloudshift_lab.health.nvml import GpuSnapshot, judge_snapshot
from cloudshift_lab.health.outcome import find_end, find_notice, find_troubles
from cloudshift_lab.health.policy import ActionPolicy, Ruling, Taken, rule
from cloudshift_lab.health.precursor import PrecursorLimits, find_precursors, first_precursors
from cloudshift_lab.health.report import Bygone, GoodputReport, HealthReport, Told
from cloudshift_lab.health.standing import Change, Standing, stand
from cloudshift_lab.health.straggler import StragglerLimits, StragglerWatch, find_stragglers
from cloudshift_lab.health.windows import (
    ClockWindow,
    DiskWindow,
    GpuWindow,
    LinkWindow,
    LossWindow,
    ProgressWindow,
    ReplicaWindow,
    StepWindow,
)
from cloudshift_lab.health.xid import Xid, find_xids, parse_xid

__all__ = [
    "Action",
    "ActionPolicy",
    "AgentWord",
    "Bygone",
    "Change",
    "ClockWindow",
    "Course",
    "DiskWindow",
    "Ending",
    "Evidence",
    "Finding",
    "Goodput",
    "GoodputFacts",
    "GoodputReport",
    "GpuSnapshot",
    "GpuWindow",
    "HangLimits",
    "Happened",
    "HealthReport",
    "HostLimits",
    "LinkWindow",
    "LiveWatch",
    "Looked",
    "LossLimits",
    "LossWindow",
    "NodeHealth",
    "NodeLimits",
    "NodeState",
    "PrecursorLimits",
    "ProgressWindow",
    "ReplicaWindow",
    "Ruling",
    "Severity",
    "Shown",
    "Span",
    "Standing",
    "StepWindow",
    "StragglerLimits",
    "StragglerWatch",
    "Subject",
    "Taken",
    "Told",
    "Xid",
    "advance",
    "clear",
    "confirm_hang",
    "course_of",
    "expect",
    "features",
    "find_clock_skew",
    "find_corruption",
    "find_dead",
    "find_disk",
    "find_end",
    "find_hang",
    "find_link",
    "find_loss_anomalies",
    "find_notice",
    "find_precursors",
    "find_stragglers",
    "find_troubles",
    "find_xids",
    "first_precursors",
    "forecast",
    "hang_limit_s",
    "judge_snapshot",
    "measured",
    "name_hang",
    "parse_xid",
    "placement_risk",
    "rule",
    "stand",
    "week_risk",
    "with_findings",
    "worst",
]
