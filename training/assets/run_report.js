"use strict";
// The report of training runs: metrics beside each other, learning curves, memory, and what each run was.

const CURVES = 8; // runs whose curves are drawn over each other

class RunReport {
  constructor(facts) {
    this.facts = facts;
  }

  draw(root) {
    const { facts } = this;
    root.append(
      heading("Training runs", el("p", "soft", `${format.plural(facts.runs.length, "run")}, ${facts.made}`)),
      this.overview(),
      this.curves(),
      ...facts.timelines.map((one) => this.timeline(one)),
    );
  }

  /** All runs with the metrics of the part that is judged last. */
  overview() {
    const { runs } = this.facts;
    const metrics = [...new Set(runs.flatMap((run) => Object.entries(run.parts).flatMap(([part, values]) => Object.keys(values).filter((name) => name !== "rows").map((name) => `${part} ${name}`))))];
    const shown = metrics.filter((name) => !name.startsWith("train ")).slice(0, 6);
    const value = (run, name) => {
      const [part, metric] = name.split(/ (.*)/);
      const found = (run.parts[part] || {})[metric];
      return found === undefined ? null : found;
    };
    const figure = (run, name) => (run.figures.find((one) => one[0] === name) || [name, null])[1];
    const columns = [
      { name: "run", of: (run) => run.name, width: "26%" },
      ...shown.map((name, at) => ({ name, of: (run) => value(run, name), show: (run) => format.number(value(run, name)), number: true, spare: at > 1 })),
      { name: "epochs", of: (run) => figure(run, "epochs"), number: true, spare: true, show: (run) => format.number(figure(run, "epochs")) },
      { name: "seconds", of: (run) => figure(run, "seconds"), number: true, spare: true, show: (run) => format.number(figure(run, "seconds")) },
    ];
    const list = new LazyTable(columns, runs, {
      search: (run) => `${run.name} ${run.task} ${run.configuration.map((one) => one.join(" ")).join(" ")}`,
      open: (run) => this.detail(run), label: "Search runs: name, or anything of the configuration", noun: "run",
    });
    list.element.classList.add("columns");
    return el("section", "card", el("h2", "", "Metrics"), list.element);
  }

  detail(run) {
    const what = definitions("said", [["created", run.created], ["snapshot", run.snapshot], ["task", run.task], ...run.figures.map(([name, value]) => [name, format.number(value)])]);
    const limit = run.memory.find((one) => one[0] === "memory_limit");
    const taken = run.memory.filter((one) => one !== limit);
    const parts = Object.entries(run.parts).map(([part, values]) => definitions("said", [["part", part], ...Object.entries(values).map(([name, value]) => [name, format.number(value)])]));
    return el(
      "div", "pieces",
      el("div", "", el("h3", "", "Run"), what),
      el("div", "", el("h3", "", "Metrics by part"), ...parts),
      el("div", "", el("h3", "", "Configuration"), definitions("said", run.configuration)),
      el("div", "", el("h3", "", "Memory"), chart.amounts(taken, format.bytes), el("p", "soft", limit ? `memory limit ${format.bytes(limit[1])}` : ""), el("h3", "", "Environment"), definitions("said", run.environment)),
    );
  }

  curves() {
    const made = el("section", "card", el("h2", "", "Learning curves"));
    const runs = this.facts.runs.slice(0, CURVES);
    const names = [...new Set(runs.flatMap((run) => run.curves.map((one) => one.name)))];
    const measures = [...new Set(names.map((name) => name.replace(/^val_/, "")))];
    for (const measure of measures) {
      const series = runs.flatMap((run, color) =>
        run.curves
          .filter((one) => one.name === measure || one.name === `val_${measure}`)
          .map((one) => ({ label: `${run.name} ${one.name}`, points: one.points, color, dashed: one.name === measure && names.includes(`val_${measure}`) })));
      const last = Math.max(...series.flatMap((one) => one.points.map((point) => point[0])), 1);
      made.append(chart.lines(series, { label: measure, show: format.number, ends: ["epoch 1", `epoch ${format.count(last)}`] }));
    }
    if (!names.length) made.append(el("p", "soft", "No run has a history."));
    if (this.facts.runs.length > CURVES) made.append(el("p", "soft", `Curves are of the first ${CURVES} runs`));
    return made;
  }

  timeline(one) {
    const end = Math.max(0, ...one.curves.flatMap((curve) => curve.points.map((point) => point[0])));
    const series = one.curves.map((curve, color) => ({ label: curve.name, points: curve.points, color, area: true }));
    const far = one.limit > 4 * one.peak; // a limit far above everything would make a line of the rest
    if (one.limit && !far) series.push({ label: "memory limit", points: [[0, one.limit], [end, one.limit]], color: 3, dashed: true });
    const columns = [
      { name: "phase", of: (phase) => phase[0], width: "40%" },
      { name: "began at", of: (phase) => phase[1], show: (phase) => `${phase[1].toFixed(1)} s`, number: true },
      { name: "seconds", of: (phase) => phase[2] - phase[1], show: (phase) => (phase[2] - phase[1]).toFixed(1), number: true, spare: true },
      { name: "peak", of: (phase) => phase[3], show: (phase) => format.bytes(phase[3]), number: true },
      { name: "projected", of: (phase) => phase[4], show: (phase) => (phase[4] ? format.bytes(phase[4]) : "–"), number: true, spare: true },
    ];
    const list = new LazyTable(columns, one.phases, { search: (phase) => phase[0], label: "Search phases", noun: "phase" });
    return el(
      "section", "card", el("h2", "", "Memory of ", said(one.name)),
      el("p", "soft", said(`${one.ended}; peak ${format.bytes(one.peak)}${one.limit ? `, memory limit ${format.bytes(one.limit)}` : ""}`)),
      chart.lines(series, { label: "bytes", show: format.bytes, ends: ["0 s", `${end.toFixed(1)} s`], fromZero: true }),
      list.element,
    );
  }
}

new RunReport(reportData()).draw(document.getElementById("report"));
