// Approve or reject a planned move. The decision goes to the Jupyter server, which works while the
// kernel is busy; only where there is no such server it goes through the kernel.

const SERVER_CANNOT = [0, 404, 405, 503];

function freshId() {
  const words = crypto.getRandomValues(new Uint32Array(3));
  return "decision-" + Array.from(words, (word) => word.toString(16).padStart(8, "0")).join("");
}

// Whose approval it is, on whatever surface: "ada (notebook)" is "ada".
function person(by) {
  return by.replace(/ \([^()]*\)$/, "");
}

function deadlineWords(view, now) {
  if (!awaitsDecision(view)) return "";
  const left = view.plan.expires_at - now;
  if (left <= 0) return "expired at " + clock(view.plan.expires_at) + "; plan the move again";
  const then = view.phase === "asking" ? "it is rolled back" : "nothing happens";
  return "expires in " + duration(left) + " (" + clock(view.plan.expires_at) + ") and then " + then;
}

function billWords(plan) {
  const bill = plan.bill;
  const saving = bill.saving_micro_usd_per_h;
  const even = bill.break_even_s === null ? "never pays for itself" : "pays for itself after " + duration(bill.break_even_s);
  return (
    (saving >= 0 ? "saves " : "costs ") + usd(Math.abs(saving)) + "/h, one-off " +
    usd(bill.one_off_micro_usd) + ", " + even + ", expected pause " + duration(plannedPause(plan)) +
    ", advice: " + plan.verdict
  );
}

function render({ model, el }) {
  const first = model.get("view");
  const id = first.migration_id;
  const ids = new Map(); // by plan and verdict: the same click twice is one decision
  const heading = make("strong", {}, "Move " + first.run_name + " from " +
    first.plan.source.cloud + ":" + first.plan.source.region + " to " +
    first.plan.target.cloud + ":" + first.plan.target.region);
  const bill = make("div", { class: "cs-dim" });
  const state = make("div", { class: "cs-state", role: "status", "aria-live": "polite" });
  const ahead = outlook();
  const moment = standing();
  const deadline = make("div", { class: "cs-dim" });
  const approve = make("button", { type: "button", class: "cs-button cs-primary" }, "Approve");
  const reject = make("button", { type: "button", class: "cs-button" }, "Reject");
  const buttons = make("div", { class: "cs-buttons" }, approve, reject);
  const phases = make("ol", { class: "cs-phases", "aria-label": "phases of the move" });
  const note = make("div", { class: "cs-note", role: "alert" });
  el.append(make("div", { class: "cs-box", role: "group", "aria-label": "decide on the move of " + first.run_name },
    make("div", {}, heading, simulatedBadge(first.plan.bill.simulated)),
    bill, ahead.node, state, moment.node, deadline, buttons, phases, note));

  let sending = false;
  let shown = first;
  let drawn = "";
  const live = follow(model, "migrations/" + encodeURIComponent(id), (view) => FINAL.includes(view.phase), (view, words, now) => {
    shown = view;
    const waiting = awaitsDecision(view);
    const expired = waiting && view.plan.expires_at <= now;
    const mine = view.approvals.some((each) => person(each.by) === person(model.get("by")));
    setText(bill, billWords(view.plan));
    setText(state, stateWords(view));
    moment.show(view, now);
    ahead.show(view);
    ahead.node.hidden = !waiting;
    setText(deadline, deadlineWords(view, now));
    setText(note, words);
    note.hidden = words === "";
    deadline.hidden = buttons.hidden = !waiting;
    for (const button of [approve, reject]) {
      const again = mine && button === approve;
      button.disabled = sending || expired || again;
      button.title = sending ? "sending" : expired ? "the plan has expired" :
        again ? "you have approved; another person must, too" : "";
    }
    const key = JSON.stringify([view.phase, view.timeline]);
    if (key !== drawn) drawPhases(phases, view);
    phases.hidden = view.phase === "proposed";
    drawn = key;
  });

  async function decide(verdict) {
    if (sending) return;
    const key = shown.plan.digest + verdict;
    if (!ids.has(key)) ids.set(key, freshId());
    const decision = {
      decision_id: ids.get(key), plan_digest: shown.plan.digest, verdict, by: model.get("by"), at: Date.now() / 1000,
    };
    sending = true;
    live.tell("");
    const { status, data } = await ask("migrations/" + encodeURIComponent(id) + "/decision", decision);
    sending = false;
    if (status === 200) live.accept(data);
    else if (SERVER_CANNOT.includes(status)) {
      model.send({ type: "decision", decision });
      live.tell("sent through the kernel, which answers after the running cell; " +
        "a terminal answers at once: cloudshift " + verdict + " " + id);
    } else live.tell(data && data.message ? data.message : "the server refused (HTTP " + status + "); reload the page");
  }
  approve.addEventListener("click", () => decide("approve"));
  reject.addEventListener("click", () => decide("reject"));
  return () => live.close();
}

export default { render };
