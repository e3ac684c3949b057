"use strict";
// The report of a comparison: which variants help, by how much, when, and what their features are worth.

class ComparisonReport {
  constructor(facts) {
    this.facts = facts;
  }

  draw(root) {
    const { facts } = this;
    root.append(
      heading("Did the feature help?", el("p", "soft", said(facts.caption)), el("p", "soft", said(`snapshot ${facts.snapshot}, ${facts.made}`))),
      this.overview(),
      this.intervals(),
      this.overTime(),
      this.configuration(),
    );
  }

  overview() {
    const { results, metric } = this.facts;
    const columns = [
      { name: "variant", of: (one) => one.name, width: "30%" },
      { name: metric, of: (one) => one.score, show: (one) => format.number(one.score), number: true },
      { name: "difference", of: (one) => (one.difference ? one.difference.mean : null), show: (one) => (one.difference ? this.signed(one.difference.mean) : ""), number: true },
      { name: "p", of: (one) => one.p, show: (one) => (one.p === null ? "" : one.p.toFixed(3)), number: true, spare: true },
      { name: "verdict", of: (one) => one.verdict },
      { name: "training", of: (one) => one.training_seconds, show: (one) => `${one.training_seconds.toFixed(1)} s`, number: true, spare: true },
    ];
    const list = new LazyTable(columns, results, {
      search: (one) => `${one.name} ${one.verdict} ${one.added.join(" ")}`,
      open: (one) => this.detail(one), label: "Search variants: name, verdict or feature", noun: "variant",
    });
    list.element.classList.add("columns");
    return el("section", "card", el("h2", "", "Variants"), list.element);
  }

  detail(one) {
    const scores = Object.entries(one.scores).map(([name, value]) => [name, format.number(value)]);
    const cells = one.by_cell.map((cell) => [`fold ${cell.fold}, seed ${cell.seed}`, format.number(cell.score)]);
    const worth = Object.entries(one.importance);
    const sizes = Object.entries(one.feature_bytes);
    return el(
      "div", "pieces",
      el("div", "", el("h3", "", "Verdict"), el("p", "", said(one.reason ? `${one.verdict}: ${one.reason}` : one.verdict)), el("h3", "", "Metrics, mean"), definitions("said", scores)),
      el("div", "", el("h3", "", this.facts.metric, " by fold and seed"), definitions("said", cells)),
      worth.length ? el("div", "", el("h3", "", "Worse by, if shuffled"), definitions("said", worth.map(([name, value]) => [name, this.signed(value)]))) : null,
      sizes.length ? el("div", "", el("h3", "", "In memory"), chart.amounts(sizes, format.bytes)) : null,
    );
  }

  /** Differences to the base with their intervals, around a line at none. */
  intervals() {
    const { more_is_better: rising, metric } = this.facts;
    const made = el("section", "card", el("h2", "", "Difference to the base"));
    const rows = this.facts.results.filter((one) => one.difference && one.difference.lower !== null);
    if (!rows.length) return el("section", "card", el("h2", "", "Difference to the base"), el("p", "soft", "No variant has an interval."));
    const far = Math.max(...rows.flatMap((one) => [Math.abs(one.difference.lower), Math.abs(one.difference.upper)])) || 1;
    const x = (value) => 500 + (480 * value) / far;
    const lines = rows.flatMap((one) => {
      const { mean, lower, upper } = one.difference;
      const drawn = svg("svg", { class: "strip tall", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img" });
      drawn.setAttribute("aria-label", `${this.signed(mean)}, ${this.signed(lower)} to ${this.signed(upper)}`);
      drawn.append(svg("rect", { class: "middle", x: 499, y: 0, width: 2, height: 10 }));
      const kind = { helps: "fresh", hurts: "stale", leaks: "stale" }[one.verdict] || "bar";
      drawn.append(titled(svg("rect", { class: kind, x: x(lower), y: 4, width: Math.max(2, x(upper) - x(lower)), height: 2 }), `95% interval ${this.signed(lower)} to ${this.signed(upper)}`));
      drawn.append(titled(svg("rect", { class: kind, x: x(mean) - 3, y: 1, width: 6, height: 8 }), this.signed(mean)));
      return [said(one.name), drawn, el("span", "number", one.verdict)];
    });
    made.append(el("p", "soft", said(`${metric}, from ${this.signed(-far)} to ${this.signed(far)}; ${rising ? "right" : "left"} of the middle is better. Intervals are of 95%.`)), el("div", "amounts", ...lines));
    return made;
  }

  overTime() {
    const { periods, results, metric } = this.facts;
    const made = el("section", "card", el("h2", "", "Over time"));
    if (!periods.length) {
      made.append(el("p", "soft", "The table has no time."));
      return made;
    }
    const shown = results.slice(0, 8);
    const series = shown.map((one, color) => ({ label: one.name, points: periods.map((period, at) => [at, period.scores[one.name]]), color }));
    made.append(chart.lines(series, { label: metric, show: format.number, ends: [format.moment(periods[0].first), format.moment(periods[periods.length - 1].last)] }));
    if (results.length > shown.length) made.append(el("p", "soft", `Drawn are the first ${shown.length} of ${results.length} variants`));
    return made;
  }

  configuration() {
    const made = el("section", "card", el("h2", "", "Configuration"), definitions("said", this.facts.configuration));
    const left = Object.entries(this.facts.unchecked);
    if (left.length) made.append(el("h3", "", "Not checked for leakage"), definitions("said", left));
    return made;
  }

  signed(value) {
    return `${value > 0 ? "+" : ""}${format.number(value)}`;
  }
}

new ComparisonReport(reportData()).draw(document.getElementById("report"));
