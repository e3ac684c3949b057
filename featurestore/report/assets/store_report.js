"use strict";
// The report of a store: its tables, their features, and what is known of each.

const LITTLE = 0.1; // of the population stability index: see featurestore.report.drift
const MUCH = 0.25;
const SHOWN = 14; // nodes of a lineage graph, on each side and level

/** One line of the list: a column of a feature or of the ingested ones. */
function lineOf(table, feature, column) {
  const total = feature.runs.reduce((sum, run) => sum + run[1], 0);
  const states = { fresh: 0, stale: 0, missing: 0 };
  for (const [state, length] of feature.runs) states[state] += length;
  const drifts = column.values ? column.values.parts.map((one) => one.psi).filter((one) => one !== undefined) : [];
  const distances = column.values ? column.values.parts.map((one) => one.ks).filter((one) => one !== undefined) : [];
  const known = column.nulls === undefined ? feature.rows : feature.rows - column.nulls;
  return {
    table, feature, column, states,
    name: column.name,
    fresh: total ? states.fresh / total : 1,
    covered: table.rows ? known / table.rows : null,
    nulls: column.nulls === undefined || !feature.rows ? null : column.nulls / feature.rows,
    psi: drifts.length ? Math.max(...drifts) : null,
    ks: distances.length ? Math.max(...distances) : null,
    // Of a file of several columns, its part by size in memory.
    stored: share(feature, column),
  };
}

function share(feature, column) {
  const total = feature.columns.reduce((sum, one) => sum + one.bytes, 0);
  return total ? Math.round((feature.stored * column.bytes) / total) : 0;
}

function psiText(value) {
  if (value === null || value === undefined) return "–";
  const mark = el("span", value > MUCH ? "bad" : value > LITTLE ? "warn" : "", value < 0.005 ? "<0.01" : value.toFixed(value < 9.95 ? 2 : 0));
  return mark;
}

/** One table of the store: what it is, its features, and how each stands. */
class TableReport {
  constructor(table, report) {
    this.table = table;
    this.report = report;
    this.lines = table.features.flatMap((feature) => feature.columns.map((column) => lineOf(table, feature, column)));
    this.byName = new Map(this.lines.map((line) => [line.name, line]));
    this.readers = this.whoReads();
    this.element = el("section", "card", el("h2", "", "Table ", said(table.name)), this.facts(), this.freshness());
    this.list = new LazyTable(this.columns(), this.lines, {
      search: (line) => `${line.name} ${line.feature.kind} ${line.column.type} ${Object.keys(line.states).filter((one) => line.states[one] && one !== "fresh").join(" ")}`,
      open: (line) => this.detail(line),
      label: "Search columns: name, kind, type, stale, missing",
      noun: "column",
    });
    this.list.element.classList.add("columns");
    this.element.append(this.list.element);
  }

  whoReads() {
    const found = new Map();
    for (const line of this.lines) {
      for (const name of line.feature.inputs) {
        if (!found.has(name)) found.set(name, []);
        found.get(name).push(line);
      }
    }
    return found;
  }

  facts() {
    const { table } = this;
    const computed = this.lines.filter((line) => line.feature.kind !== "ingested").length;
    const times = table.partitions.filter((one) => one[2]);
    const pairs = [
      ["rows", format.count(table.rows)],
      ["partitions", format.count(table.partitions.length)],
      ["columns", `${format.count(this.lines.length)}, ${format.count(computed)} of them features`],
      ["on disk", format.bytes(table.stored)],
      ["key", table.key.join(", ") || "none"],
      ["time", table.time === null ? "none" : table.time],
    ];
    if (times.length) pairs.push(["from", format.moment(times[0][2])], ["to", format.moment(times[times.length - 1][3])]);
    return definitions("facts", pairs);
  }

  freshness() {
    const features = this.table.features.filter((one) => one.runs.length);
    if (!features.length) return el("p", "soft", "No features: all columns were ingested.");
    const count = { fresh: 0, stale: 0, missing: 0 };
    for (const one of features) for (const [state, length] of one.runs) count[state] += length;
    const total = count.fresh + count.stale + count.missing;
    const words = Object.keys(count).filter((state) => count[state]);
    const text = words.map((state) => `${format.share(count[state] / Math.max(1, total))} ${state}`).join(", ");
    return el("div", "tools", chart.key("fresh", "stale", "missing"), el("span", "soft", `partitions of ${format.plural(features.length, "feature")}: ${text}`));
  }

  columns() {
    const columns = [
      { name: "column", of: (line) => line.name, width: "27%" },
      { name: "kind", of: (line) => line.feature.kind, spare: true, width: "11%" },
      { name: "type", of: (line) => line.column.type, spare: true },
      {
        name: "freshness", about: "freshness of each partition, in table order", of: (line) => line.fresh, width: "19%",
        show: (line) => (line.feature.runs.length ? chart.strip(line.feature.runs) : ""),
      },
      { name: "covered", about: "rows that have a value", of: (line) => line.covered, show: (line) => format.share(line.covered), number: true },
      { name: "nulls", about: "nulls among the rows that are built", of: (line) => line.nulls, show: (line) => format.share(line.nulls), number: true, spare: true },
      { name: "on disk", of: (line) => line.stored, show: (line) => format.bytes(line.stored), number: true, spare: true, width: "10%" },
    ];
    if (this.table.parts.length > 1) {
      columns.splice(6, 0, {
        name: "drift", about: "largest population stability index of a part against the first", of: (line) => line.psi, show: (line) => psiText(line.psi), number: true,
      });
    }
    return columns;
  }

  // --- one column ---------------------------------------------------------------------------

  detail(line) {
    const pieces = [this.definition(line), this.standing(line), this.distribution(line), this.lineage(line)];
    return el("div", "pieces", ...pieces);
  }

  definition(line) {
    const { feature, column } = line;
    const pairs = [["kind", feature.kind], ["type", column.type], ...feature.parameters];
    if (feature.ahead) pairs.push(["looks ahead", "yes: a label, refused as a model's input"]);
    if (feature.columns.length > 1 && feature.kind !== "ingested") {
      const others = feature.columns.map((one) => one.name).filter((name) => name !== column.name);
      const more = others.length > 20 ? ` and ${others.length - 20} more` : "";
      pairs.push(["together with", others.slice(0, 20).join(", ") + more]);
    }
    if (feature.fingerprint) pairs.push(["fingerprint", feature.fingerprint]);
    const cost = `${format.bytes(line.stored)} on disk, ${format.bytes(column.bytes)} in memory`;
    pairs.push(["cost", cost]);
    const made = el("div", "", el("h3", "", "Definition"), el("p", "name", said(column.name)), definitions("said", pairs));
    if (feature.source) made.append(el("details", "", el("summary", "", "source"), el("pre", "", feature.source)));
    return made;
  }

  standing(line) {
    const { feature, column } = line;
    const made = el("div", "");
    if (feature.runs.length) {
      made.append(el("h3", "", "Freshness per partition"), chart.strip(feature.runs, true), this.axis());
      const reasons = feature.runs.filter((run) => run[2]);
      const why = [...new Set(reasons.map((run) => `${run[0]}: ${run[2]}`))];
      const text = Object.keys(line.states).filter((state) => line.states[state]).map((state) => `${format.count(line.states[state])} ${state}`);
      made.append(el("p", "soft", text.join(", ") + (why.length ? ` (${why.join("; ")})` : "")));
    }
    made.append(
      el("h3", "", "Coverage: rows that have a value"),
      chart.steps(column.coverage.map((one) => (one === null ? null : one / 1000)), this.table.bins, "coverage over partitions"),
      this.axis(),
    );
    const nulls = column.nulls === undefined ? "tensors have no nulls" : `${format.count(column.nulls)} nulls (${format.share(line.nulls)})`;
    made.append(el("p", "soft", `${format.share(line.covered)} of ${format.count(this.table.rows)} rows; ${nulls}`));
    return made;
  }

  /** The first and last time of what is drawn above. */
  axis() {
    const { partitions } = this.table;
    const ends = partitions.length && partitions[0][2] ? [format.moment(partitions[0][2]), format.moment(partitions[partitions.length - 1][3])] : ["first partition", "last"];
    return el("div", "axis soft", el("span", "", ends[0]), el("span", "", ends[1]));
  }

  distribution(line) {
    const { values, unseen } = line.column;
    const { parts, divided } = this.table;
    const made = el("div", "wide", el("h3", "", "Distribution and drift"));
    if (!values) {
      const why = unseen || (parts.length ? "nothing was sampled" : "values were not looked at");
      made.append(el("p", "soft", said(why)));
      return made;
    }
    const first = values.parts.findIndex((one) => one.counts && one.counts.some((count) => count > 0));
    const show = values.form === "times" ? format.time : format.number;
    made.append(el("p", "soft", `Sampled rows by part: ${divided}. ${this.described(values, show)}`));
    const figures = values.parts.map((one, at) => this.part(values, one, parts[at], at > first ? values.parts[first].counts : null));
    made.append(el("div", "parts", ...figures));
    if (values.parts.some((one) => one.quantiles)) {
      const rows = values.parts.map((one) => (one.quantiles ? one.quantiles.slice(1, 6) : [null]));
      const shown = rows.filter((row) => row.length > 1);
      if (shown.length > 1) made.append(el("h3", "", "5%, 25%, 50%, 75% and 95% of each part"), chart.band(shown, show));
    }
    return made;
  }

  described(values, show) {
    if (values.labels) {
      const rest = values.others ? `, the last bar all others of ${format.count(values.distinct)}` : "";
      return `Bars: ${values.labels.map((one) => cut(one, 18)).join(", ")}${rest}. Outline: the first part.`;
    }
    if (!values.edges) return "No finite values.";
    const { edges } = values;
    return `Bins from ${show(edges[0])} to ${show(edges[edges.length - 1])}, the outer ones with what lies beyond. Outline: the first part.`;
  }

  part(values, one, part, first) {
    const caption = [part[1] ? `${part[0]}: ${part[1].slice(0, 10)} to ${part[2].slice(0, 10)}` : part[0]];
    caption.push(`${format.count(one.rows)} rows, ${format.share(one.rows ? one.nulls / one.rows : null)} null`);
    if (one.odd) caption.push(`${format.count(one.odd)} NaN or infinite`);
    if (one.mean !== undefined) caption.push(`mean ${values.form === "times" ? format.time(one.mean) : format.number(one.mean)}`);
    const lines = caption.map((text) => el("div", "", said(text)));
    if (one.psi !== undefined) {
      const drift = el("div", "", "PSI ", psiText(one.psi));
      if (one.ks !== undefined) drift.append(`, KS ${one.ks.toFixed(2)}`);
      lines.push(drift);
    }
    const drawn = chart.histogram(one.counts || [], first, caption.join(", "));
    if (values.labels) {
      const bars = [...drawn.querySelectorAll("rect title")];
      bars.forEach((title, at) => {
        const name = at < values.labels.length ? values.labels[at] : "others";
        title.textContent = `${name}: ${title.textContent}`;
      });
    }
    return el("figure", "", drawn, el("figcaption", "", ...lines));
  }

  // --- lineage ------------------------------------------------------------------------------

  lineage(line) {
    const made = el("div", "wide", el("h3", "", "Lineage"));
    const graph = this.around(line);
    if (graph.nodes.length === 1) {
      made.append(el("p", "soft", "It reads no column, and no feature reads it."));
      return made;
    }
    made.append(chart.graph(graph.nodes, graph.edges));
    if (graph.left) made.append(el("p", "soft", `${format.plural(graph.left, "column")} more are not drawn`));
    return made;
  }

  /** What a column is computed from, three levels back, and what is computed from it. */
  around(line) {
    const nodes = new Map();
    const edges = [];
    const counts = new Map();
    let left = 0;
    const add = (id, column, made) => {
      if (nodes.has(id)) return true;
      if ((counts.get(column) || 0) >= SHOWN) {
        left += 1;
        return false;
      }
      counts.set(column, (counts.get(column) || 0) + 1);
      nodes.set(id, { id, column, ...made });
      return true;
    };
    const own = (other) => ({
      label: other.name, kind: other.feature.kind === "ingested" ? "base" : "feature", here: other === line,
      about: `${other.name} (${other.feature.kind})`, press: other === line ? null : () => this.list.reveal(other),
    });
    add(line.name, 0, own(line));
    let level = [line];
    for (let depth = -1; depth >= -3 && level.length; depth -= 1) {
      const next = [];
      for (const to of level) {
        for (const name of to.feature.inputs) {
          const from = this.byName.get(name);
          if (!from || !add(name, depth, own(from))) continue;
          edges.push([name, to.name]);
          if (!next.includes(from)) next.push(from);
        }
        for (const [table, name] of to.feature.reads) {
          const id = `${table}\u0000${name}`;
          const press = () => this.report.reveal(table, name);
          if (add(id, depth, { label: `${table}.${name}`, kind: "feature", press })) edges.push([id, to.name]);
        }
      }
      level = next;
    }
    for (const reader of this.readers.get(line.name) || []) {
      if (add(reader.name, 1, own(reader))) edges.push([line.name, reader.name]);
    }
    return { nodes: [...nodes.values()], edges, left };
  }
}

class StoreReport {
  constructor(facts) {
    this.facts = facts;
    this.tables = new Map();
    this.place = el("div");
  }

  draw(root) {
    const { facts } = this;
    const pieces = [
      heading("Feature store", el("p", "soft", said(`${facts.url} at version ${facts.version}`)), el("p", "soft", `${facts.software}, ${facts.made}`)),
      this.overview(),
      this.place,
      this.history(),
    ];
    root.append(...pieces.filter((one) => one !== null));
    if (facts.tables.length) this.show(facts.tables[0].name);
  }

  overview() {
    const { tables } = this.facts;
    if (!tables.length) return el("p", "card", "The store has no tables.");
    const columns = [
      { name: "table", of: (one) => one.name, show: (one) => this.chooser(one.name), width: "30%" },
      { name: "rows", of: (one) => one.rows, show: (one) => format.count(one.rows), number: true },
      { name: "partitions", of: (one) => one.partitions.length, show: (one) => format.count(one.partitions.length), number: true, spare: true },
      { name: "features", of: (one) => one.features.length - 1, show: (one) => format.count(one.features.length - 1), number: true },
      { name: "on disk", of: (one) => one.stored, show: (one) => format.bytes(one.stored), number: true },
    ];
    const made = el("section", "card", el("h2", "", "Tables"));
    if (tables.length === 1) return null;
    const list = new LazyTable(columns, tables, { search: (one) => one.name, label: "Search tables", noun: "table" });
    made.append(list.element, el("p", "soft", "Press a table to see its columns below."));
    return made;
  }

  /** A button that shows a table below. */
  chooser(name) {
    const press = el("button", "link", said(name));
    press.type = "button";
    press.addEventListener("click", () => this.show(name));
    return press;
  }

  show(name) {
    if (!this.tables.has(name)) {
      const table = this.facts.tables.find((one) => one.name === name);
      if (!table) return null;
      this.tables.set(name, new TableReport(table, this));
    }
    const found = this.tables.get(name);
    this.place.replaceChildren(found.element);
    return found;
  }

  /** Show a column of another table, if that is in this report. */
  reveal(table, column) {
    const found = this.show(table);
    if (found && found.byName.has(column)) found.list.reveal(found.byName.get(column));
  }

  history() {
    const { history, older, tags } = this.facts;
    const names = new Map();
    for (const [tag, version] of tags) names.set(version, [...(names.get(version) || []), tag]);
    const columns = [
      { name: "version", of: (one) => one[0], show: (one) => format.count(one[0]), number: true, width: "7em" },
      { name: "what", of: (one) => one[2], show: (one) => said(one[3] ? `${one[2]}: ${one[3]}` : one[2]) },
      { name: "tags", of: (one) => (names.get(one[0]) || []).join(", "), spare: true, width: "16%" },
      { name: "created", of: (one) => one[1], show: (one) => one[1].slice(0, 19).replace("T", " "), spare: true, width: "15em" },
    ];
    const list = new LazyTable(columns, history, { search: (one) => `${one[0]} ${one[2]} ${(names.get(one[0]) || []).join(" ")}`, label: "Search versions", noun: "version" });
    const made = el("section", "card", el("h2", "", "Versions"), list.element);
    if (older) made.append(el("p", "soft", `${format.plural(older, "older version")} are not shown or were let go`));
    return made;
  }
}

new StoreReport(reportData()).draw(document.getElementById("report"));
