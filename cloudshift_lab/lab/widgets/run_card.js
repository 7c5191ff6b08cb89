// The live card of one run.

const ENDED = ["stopped", "finished", "failed", "lost"];
const GLYPHS = {
  starting: "…", running: "●", migrating: "◐", stopping: "◌", stopped: "■", finished: "✓", failed: "✗", lost: "?",
};
const STALE_S = 10;

function curve(points) {
  const losses = points.map((point) => point[1]).filter((value) => Number.isFinite(value));
  if (losses.length < 2) return null;
  const low = Math.min(...losses);
  const span = Math.max(...losses) - low || 1;
  const step = 156 / (losses.length - 1);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("class", "cs-curve");
  line.setAttribute("points", losses.map((value, index) =>
    (2 + index * step).toFixed(1) + "," + (2 + (1 - (value - low) / span) * 24).toFixed(1)).join(" "));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 160 28");
  svg.setAttribute("width", "160");
  svg.setAttribute("height", "28");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "loss, newest " + losses[losses.length - 1].toFixed(4));
  svg.append(line);
  return svg;
}

function amount(value, digits) {
  if (value === null || value === undefined) return "-";
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function ageWords(at, now) {
  return at === null || at === undefined ? "none yet" : duration(now - at) + " old";
}

function runNoticeWords(view, now) {
  if (!given(view.notice_until)) return "";
  const left = view.notice_until - now;
  const goes = "notice: this machine is taken away " + (left > 0 ? "in " + duration(left) : "now");
  return view.notice ? goes + ": " + view.notice : goes;
}

function render({ model, el }) {
  const first = model.get("view");
  const where = make("strong");
  const state = make("span", { role: "status", "aria-live": "polite" });
  const badge = make("span");
  const names = ["step", "loss", "curve", "tokens/s", "price", "spent", "checkpoint"];
  const slots = Object.fromEntries(names.map((name) => [name, make("span", { class: "cs-value" })]));
  const facts = make("div", { class: "cs-facts" }, ...names.map((name) =>
    make("div", {}, make("div", { class: "cs-label" }, name === "curve" ? "loss so far" : name), slots[name])));
  const age = make("div", { class: "cs-dim" });
  const note = make("div", { class: "cs-note", role: "alert" });
  const move = make("div", { role: "status", "aria-live": "polite" });
  const moment = standing();
  const notice = make("div", { class: "cs-notice" });
  const phases = make("ol", { class: "cs-phases", "aria-label": "phases of the move" });
  moment.node.hidden = move.hidden = phases.hidden = true;
  const trace = make("pre", { class: "cs-trace" });
  el.append(make("div", { class: "cs-box", role: "group", "aria-label": "live card of run " + first.name },
    make("div", {}, make("strong", {}, first.name), " (" + first.run_id + ")  ", state, " on ", where, badge),
    facts, notice, move, moment.node, phases, note, trace, age));

  const showMove = (newest) => {
    if (!newest || !newest.migration_id) return;
    const last = moveShown;
    if (last && last.migration_id === newest.migration_id && newest.as_of < last.as_of) return;
    moveShown = newest;
    setText(move, "move to " + place(newest.plan.target) + ": " + stateWords(newest));
    moment.show(newest, newest.as_of);
    moment.node.hidden = move.hidden = false;
    phases.hidden = newest.phase === "proposed";
    const entered = [newest.migration_id, newest.phase, newest.timeline];
    if (JSON.stringify(entered) !== phasesDrawn) drawPhases(phases, newest);
    phasesDrawn = JSON.stringify(entered);
  };
  const followMove = async (id) => {
    if (moveAsked === id || jupyterBase() === null) return;
    moveAsked = id;
    while (open && moveAsked === id) {
      const { status, data } = await ask("migrations/" + encodeURIComponent(id));
      if (status === 200) showMove(data);
      if (status === 200 && FINAL.includes(data.phase)) return;
      await new Promise((done) => setTimeout(done, 1000));
    }
  };
  const fromKernel = () => showMove(model.get("move"));
  let moveShown = null;
  let moveAsked = "";
  let phasesDrawn = "";
  let open = true;
  let drawn = "";
  model.on("change:move", fromKernel);
  fromKernel();
  const live = follow(model, "runs/" + encodeURIComponent(first.run_id), (view) => ENDED.includes(view.state), (view, words, now) => {
    const ended = ENDED.includes(view.state);
    const clockNow = ended ? view.as_of : now;
    const simulated = view.simulated ? ", simulated" : "";
    setText(state, GLYPHS[view.state] + " " + view.state);
    setText(where, place(view.placement));
    setText(notice, runNoticeWords(view, clockNow));
    notice.hidden = notice.textContent === "";
    badge.replaceChildren(...[simulatedBadge(view.simulated)].filter(Boolean));
    setText(slots.step, amount(view.step, 0));
    setText(slots.loss, amount(view.loss, 4));
    setText(slots["tokens/s"], amount(view.tokens_per_s, 0));
    setText(slots.price, usd(ended ? 0 : view.price_micro_usd_per_h) + "/h" + simulated);
    setText(slots.spent, usd(view.spent_micro_usd));
    setText(slots.checkpoint, view.checkpoint_step === null ? "none yet" :
      "step " + view.checkpoint_step + ", " + ageWords(view.checkpoint_at, clockNow));
    const key = JSON.stringify(view.losses);
    if (key !== drawn) slots.curve.replaceChildren(...[curve(view.losses)].filter(Boolean));
    drawn = key;
    const dataAge = Math.max(0, now - view.as_of);
    const stale = !ended && dataAge > STALE_S;
    setText(age, (stale ? "stale: " : "") + "newest step " + ageWords(view.progress_at, clockNow) +
      (ended ? ", ended" : ", data " + duration(dataAge) + " old"));
    el.classList.toggle("cs-stale", stale);
    if (view.migration_id) followMove(view.migration_id);
    const failure = view.error ? (view.error_rank === null ? "" : "rank " + view.error_rank + ": ") + view.error : "";
    setText(note, [failure, words].filter(Boolean).join(" · "));
    note.hidden = note.textContent === "";
    setText(trace, view.traceback || "");
    trace.hidden = !view.traceback;
  });
  return () => {
    open = false;
    model.off("change:move", fromKernel);
    live.close();
  };
}

export default { render };
