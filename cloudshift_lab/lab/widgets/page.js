// Shared by all widgets (put before each of them): building elements, talking to the Jupyter
// server, and writing numbers as people do. Text only ever enters the page as text.

const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

// Jupyter's base URL, or null where no Jupyter server serves this page (VS Code, Colab).
function jupyterBase() {
  const config = document.getElementById("jupyter-config-data");
  if (config) {
    try {
      return JSON.parse(config.textContent).baseUrl || null;
    } catch {
      return null;
    }
  }
  return document.body.dataset.baseUrl || null;
}

async function ask(path, body) {
  const base = jupyterBase();
  if (base === null) return { status: 0, data: null };
  const xsrf = (document.cookie.match("(^|; )_xsrf=([^;]*)") || [])[2] || "";
  const options = { credentials: "same-origin", cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = {
      "Content-Type": "application/json",
      "X-XSRFToken": decodeURIComponent(xsrf),
    };
    options.body = JSON.stringify(body);
  }
  try {
    const answer = await fetch(base + "cloudshift/api/" + path, options);
    const text = await answer.text();
    let data = null;
    try {
      data = JSON.parse(text);
    } catch {
      data = null;
    }
    return { status: answer.status, data };
  } catch {
    return { status: 0, data: null };
  }
}

// Keeps one view fresh: from the Jupyter server each second (works while the kernel is busy),
// else from the kernel's own updates. Calls show(view, note) at every change and each half second.
function follow(model, path, isEnded, show) {
  const state = { view: model.get("view"), receivedAt: Date.now(), note: "", alive: true };
  const accept = (view) => {
    if (!view) return;
    const older = state.view ? state.view.as_of - view.as_of : 0;
    if (older > 0 && older < 60) return; // an answer that was overtaken, not a clock set back
    state.view = view;
    state.receivedAt = Date.now();
    state.note = "";
  };
  const draw = () => show(state.view, state.note, now());
  const now = () => (state.view.as_of || 0) + (Date.now() - state.receivedAt) / 1000;
  const fromKernel = () => {
    accept(model.get("view"));
    draw();
  };
  const fromProblem = () => {
    state.note = model.get("problem") || "";
    draw();
  };
  const poll = async () => {
    if (!state.alive) return;
    const { status, data } = await ask(path);
    if (!state.alive) return;
    if (status === 200) accept(data);
    else if (status === 503 && data && data.message) state.note = data.message;
    draw();
    if (!isEnded(state.view)) setTimeout(poll, 1000);
  };
  model.on("change:view", fromKernel);
  model.on("change:problem", fromProblem);
  const ticker = setInterval(draw, 500);
  draw();
  if (jupyterBase() !== null) poll();
  return {
    accept(view) {
      accept(view);
      draw();
    },
    tell(note) {
      state.note = note;
      draw();
    },
    close() {
      state.alive = false;
      clearInterval(ticker);
      model.off("change:view", fromKernel);
      model.off("change:problem", fromProblem);
    },
  };
}

function usd(micro) {
  const value = Math.abs(micro) / 1e6;
  const digits = value === 0 || value >= 0.1 ? 2 : value >= 0.0001 ? 4 : 6;
  return (micro < 0 ? "-$" : "$") + value.toFixed(digits);
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let index = 0;
  while (count >= 1000 && index < units.length - 1) {
    count /= 1000;
    index += 1;
  }
  return (index === 0 ? count.toFixed(0) : count.toFixed(1)) + " " + units[index];
}

function duration(seconds) {
  const value = Math.max(0, seconds);
  if (value < 10) return value.toFixed(1) + " s";
  if (value < 60) return value.toFixed(0) + " s";
  const whole = Math.round(value);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return minutes + " min" + (whole % 60 ? " " + (whole % 60) + " s" : "");
  return Math.floor(minutes / 60) + " h" + (minutes % 60 ? " " + (minutes % 60) + " min" : "");
}

function clock(at) {
  return new Date(at * 1000).toISOString().slice(11, 19) + " UTC";
}

function simulatedBadge(simulated) {
  if (!simulated) return null;
  return make("span", { class: "cs-badge", title: "not a real cloud and not a real bill" }, "simulated");
}

// Changes a node only when the words differ, so that screen readers and selections are left alone.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
