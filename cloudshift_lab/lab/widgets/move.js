// Shared by the widgets that show a move (put behind page.js): its words, tables and phases.

const FINAL = ["source_retired", "rejected", "expired", "rolled_back"];
const PATH = [
  "proposed", "approved", "provisioning", "precopying", "rehearsing", "draining", "copying", "verifying",
  "committing", "committed", "resumed", "source_retired",
];
const CLOSINGS = { copy: "copy bytes", replay: "repeat steps" };

function awaitsDecision(view) {
  return view.phase === "proposed" || view.phase === "asking";
}

function title(phase) {
  return phase.replaceAll("_", " ");
}

function place(placement) {
  return placement.cloud + ":" + placement.region;
}

function given(value) {
  return value !== null && value !== undefined;
}

function closingName(kind) {
  return CLOSINGS[kind] || kind;
}

function plannedPause(plan) {
  const chosen = plan.closings.find((way) => way.kind === plan.closing);
  return chosen ? chosen.pause_s : plan.bill.pause_s;
}

// -- where it stands -------------------------------------------------------------------

function decisionWords(decision) {
  return (decision.verdict === "approve" ? "approved" : "rejected") + " by " + decision.by;
}

function deciders(view) {
  if (view.decision && view.decision.verdict === "reject") return [decisionWords(view.decision)];
  const who = view.approvals.length ? view.approvals : view.decision ? [view.decision] : [];
  const words = who.map(decisionWords);
  const left = view.plan.approvals_needed - who.length;
  if (awaitsDecision(view) && who.length && left > 0) {
    words.push(left + (left === 1 ? " more approval is needed" : " more approvals are needed"));
  }
  return words;
}

function stateWords(view) {
  const waiting = { proposed: "waiting for your decision", asking: "asking again" };
  const words = [waiting[view.phase] || title(view.phase), ...deciders(view)];
  if (awaitsDecision(view) && view.waiting) words.push("its rule: " + view.waiting);
  if (given(view.sealed_step)) words.push("moved at step " + view.sealed_step);
  if (given(view.pause_s)) {
    const still = given(view.still_s) && Math.abs(view.pause_s - view.still_s) >= 0.05;
    const inside = still ? " (" + duration(view.still_s) + " of it nothing was computed)" : "";
    words.push("pause " + duration(view.pause_s) + inside);
  }
  if (view.bytes_moved) words.push(bytes(view.bytes_moved) + " moved");
  if (view.error) words.push(view.error);
  return words.join(" · ");
}

function askedAgainWords(view) {
  if (view.phase !== "asking" || !view.timeline.length) return "";
  return "asked again: " + (view.timeline[view.timeline.length - 1].detail || "the bill is worse than approved");
}

function noticeWords(view, now) {
  if (!given(view.notice_s)) return "";
  const left = Math.max(0, view.notice_s - Math.max(0, now - view.as_of));
  const saved = given(view.sealed_step) ? "step " + view.sealed_step + " is saved" : "its newest step is saved first";
  return "notice: the source's machine goes in " + duration(left) + "; " + saved + ", the rest needs only the source's store";
}

function rehearsedWords(view) {
  const at = view.timeline.map((entry) => entry.phase).lastIndexOf("rehearsing");
  const after = at < 0 ? undefined : view.timeline[at + 1];
  return after && after.phase === "draining" && after.detail ? "rehearsed: " + after.detail : "";
}

function goingWords(view) {
  const going = view.going;
  if (!going) return "";
  const words = going.detail ? [going.detail] : [];
  if (going.total_bytes) {
    const part = Math.min(1, going.done_bytes / going.total_bytes);
    words.push(bytes(going.done_bytes) + " of " + bytes(going.total_bytes) + " (" + Math.round(part * 100) + "%)");
  } else if (going.done_bytes) words.push(bytes(going.done_bytes));
  if (going.bytes_per_s) words.push(bytes(going.bytes_per_s) + "/s");
  if (given(going.eta_s)) words.push(duration(going.eta_s) + " left");
  return words.length ? title(view.phase) + ": " + words.join(" · ") : "";
}

// Lines and a progress bar that change in place, so that a ticking second disturbs nothing.
function standing() {
  const lines = ["again", "notice", "rehearsed", "going", "partial"].map((name) =>
    make("div", { class: "cs-" + name })); // no live regions: a countdown would be read out each second
  const bar = make("progress", { max: "1", "aria-label": "bytes copied" });
  const node = make("div", {}, ...lines, bar);
  const show = (view, now) => {
    const words = [
      askedAgainWords(view), noticeWords(view, now), rehearsedWords(view), goingWords(view),
      view.partial ? "not moved: " + view.partial : "",
    ];
    lines.forEach((line, index) => {
      setText(line, words[index]);
      line.hidden = words[index] === "";
    });
    bar.hidden = !(view.going && view.going.total_bytes);
    if (!bar.hidden) bar.value = Math.min(1, view.going.done_bytes / view.going.total_bytes);
  };
  return { node, show };
}

// -- what it will do -------------------------------------------------------------------

function grid(head, rows, label) {
  const cells = (name, row, attributes) => make("tr", {}, ...row.map((cell) => make(name, attributes, cell)));
  return make("table", { class: "cs-table", "aria-label": label },
    make("thead", {}, cells("th", head, { scope: "col" })), make("tbody", {}, ...rows.map((row) => cells("td", row, {}))));
}

function closingsTable(plan) {
  const rows = plan.closings.map((way) => [
    (way.kind === plan.closing ? "▸ " + closingName(way.kind) + " (chosen)" : closingName(way.kind)),
    duration(way.pause_s), duration(way.still_s), bytes(way.num_bytes),
    way.replayed_steps === 0 ? "-" : way.replayed_steps === 1 ? "1 step" : way.replayed_steps + " steps", way.basis,
  ]);
  return grid(["closing", "pause", "nothing computed", "on the wire", "repeats", "known from"], rows, "ways to close the gap");
}

function promises(plan) {
  const found = [];
  const steps = plan.rehearsal_steps === 1 ? "1 step" : plan.rehearsal_steps + " steps";
  if (plan.rehearsal_steps) {
    const how = !plan.tolerance
      ? "bit by bit"
      : plan.closing === "copy"
        ? "within " + plan.tolerance + " of its size"
        : "bit by bit (if only within " + plan.tolerance + ", bytes are copied, no step repeated)";
    found.push("rehearsal: the target computes " + steps + " before the commit while the source trains; " +
      "each loss must equal the source's " + how);
  } else if (plan.closings.length) found.push("no rehearsal: the target's first step comes after the commit");
  const elsewhere = plan.fallbacks.map((other) => place(other.placement)).join(", then ");
  const policies = {
    "roll-back": "the move is rolled back",
    wait: "it waits for them, and rolls back if they do not come",
    shrink: "it goes on with " + plan.min_nodes + " or more of " + plan.target.nodes + ", else it is rolled back",
    elsewhere: "it goes to " + (elsewhere || "no other place, so it is rolled back"),
  };
  if (plan.target.nodes > 1 || plan.missing_nodes !== "roll-back") {
    found.push("if nodes are missing: " + policies[plan.missing_nodes]);
  }
  if (plan.limit_micro_usd) {
    found.push("limit: the move itself may cost " + usd(plan.limit_micro_usd) + "; above it is undone, up to the commit");
  }
  if (plan.approvals_needed > 1) {
    found.push(plan.approvals_needed + " approvals are needed, each of another person or policy");
  }
  return found;
}

function share(part) {
  const percent = part * 100;
  return (percent === 0 || percent >= 9.95 ? percent.toFixed(0) : percent.toFixed(1)) + " %";
}

// A line from a tenth to nine tenths with a mark at the half, on a scale from 0.
function range(spread, label) {
  const most = Math.max(spread.p90, 1e-9) * 1.08;
  const [low, half, high] = [spread.p10, spread.p50, spread.p90].map((value) => 2 + (Math.max(0, value) / most) * 116);
  const svg = document.createElementNS(SVG, "svg");
  for (const [x1, x2, y1, y2] of [[low, high, 6, 6], [half, half, 1, 11]]) {
    const line = document.createElementNS(SVG, "line");
    for (const [name, value] of Object.entries({ x1, x2, y1, y2 })) line.setAttribute(name, value.toFixed(1));
    svg.append(line);
  }
  for (const [name, value] of Object.entries({ viewBox: "0 0 120 12", width: "120", height: "12", class: "cs-range",
    role: "img", "aria-label": label })) svg.setAttribute(name, value);
  return svg;
}

function futuresTable(futures) {
  const rows = [
    ["pause", futures.pause_s, duration], ["cost of the move", futures.cost_micro_usd, usd],
    ["over after", futures.finish_s, duration],
  ].map(([name, spread, words]) => spread === null ? [name, "none of them arrived", "-", "-", ""] : [
    name, words(spread.p10), words(spread.p50), words(spread.p90), range(spread, name + ": 1 in 10 below " +
      words(spread.p10) + ", half below " + words(spread.p50) + ", 9 in 10 below " + words(spread.p90)),
  ]);
  const num = futures.num.toLocaleString("en-US");
  return make("div", {},
    make("div", {}, num + " futures of this click", simulatedBadge(true)),
    grid(["in these", "1 in 10 below", "half below", "9 in 10 below", ""], rows, "simulated futures"),
    make("div", {}, share(futures.rolled_back) + " are rolled back, " + share(futures.lost_steps) + " lose steps"),
    make("details", { class: "cs-dim" }, make("summary", {}, "drawn from"), futures.basis));
}

// Everything that a decision rests on beside the bill; drawn again only when it has changed.
function outlook() {
  const node = make("div", { class: "cs-outlook" });
  let drawn = "";
  const show = (view) => {
    const key = JSON.stringify([view.plan.digest, view.futures]);
    if (key === drawn) return;
    drawn = key;
    node.replaceChildren(
      ...(view.plan.closings.length ? [closingsTable(view.plan)] : []),
      ...promises(view.plan).map((line) => make("div", { class: "cs-dim" }, line)),
      ...(view.futures ? [futuresTable(view.futures)] : []),
    );
  };
  return { node, show };
}

// -- phases ----------------------------------------------------------------------------

function drawPhases(list, view) {
  const entered = view.timeline.map((entry) => entry.phase);
  const over = FINAL.includes(view.phase) || view.phase === "rolling_back";
  const skipped = [
    ...(view.plan.rehearsal_steps ? [] : ["rehearsing"]), ...(view.plan.closing === "replay" ? ["copying"] : []),
  ];
  const ahead = over ? [] : PATH.filter((phase) => !entered.includes(phase) && !skipped.includes(phase));
  const last = view.timeline.length - 1;
  const passed = view.timeline.map((entry, index) => {
    const took = index < last ? " " + duration(view.timeline[index + 1].at - entry.at) : "";
    const glyph = index === last && !FINAL.includes(entry.phase) ? "▸" : "✓";
    return make("li", { class: index === last ? "cs-current" : "cs-done", title: entry.detail || null,
      "aria-current": index === last ? "step" : null }, glyph + " " + title(entry.phase) + took);
  });
  list.replaceChildren(...passed, ...ahead.map((phase) => make("li", { class: "cs-ahead" }, "· " + title(phase))));
}
