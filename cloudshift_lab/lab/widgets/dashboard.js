// The dashboard in a frame, addressed through the Jupyter server that serves this page.

function render({ model, el }) {
  const base = jupyterBase();
  if (base === null) {
    el.append(make("div", { class: "cs-box" },
      "No Jupyter server serves this page. In a terminal: cloudshift dashboard"));
    return;
  }
  const query = new URLSearchParams();
  if (model.get("run_id")) query.set("run", model.get("run_id"));
  const dark = document.body.dataset.jpThemeLight === "false";
  query.set("theme", dark ? "dark" : "default");
  const address = base + "cloudshift/dashboard/?" + query.toString();
  const link = make("a", { href: address, target: "_blank", rel: "noopener" }, "open in its own tab");
  el.append(make("div", { class: "cs-box" }, make("div", { class: "cs-dim" }, link),
    make("iframe", { src: address, class: "cs-frame", title: "CloudShift dashboard" })));
}

export default { render };
